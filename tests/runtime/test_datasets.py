"""Loaders read what was published, in every form and place it may have, and say in one line what is wrong with anything else."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from data_files import (
    CIFAR_NAMES,
    IDX_NAMES,
    cifar_batch,
    idx_arrays,
    idx_bytes,
    python2_pickle,
    real_data,
    svhn_arrays,
    write_cifar,
    write_idx,
    write_svhn,
)
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.io import savemat
from strategies import exactly

from fl_runtime.datasets import DataRequest, Dataset, dataset_names, load_dataset, make_dataset, register_dataset
from fl_runtime.datasets import registry as registry_module
from fl_runtime.datasets.idx import read_idx
from fl_runtime.datasets.safe_pickle import array_of, load_plain_pickle
from fl_runtime.datasets.svhn import read_svhn
from fl_runtime.errors import DataError
from schedopt.errors import InputError

BUILT_IN = ("mnist", "fashion-mnist", "cifar-10", "svhn", "digits", "breast-cancer", "wine")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set is found by chance, and nothing is downloaded."""
    monkeypatch.setenv("SCHEDOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SCHEDOPT_DATA_DIR", raising=False)
    monkeypatch.setenv("SCHEDOPT_DATA_URL", "http://127.0.0.1:9")  # the discard port: nobody answers


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# what was published


@pytest.mark.parametrize(
    ("name", "mean", "std", "counts"),
    [
        ("mnist", 0.1307, 0.3081, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("fashion-mnist", 0.2860, 0.3530, [6000] * 10),
    ],
)
def test_real_idx_files(name: str, mean: float, std: float, counts: list[int]) -> None:
    folder = real_data(name)
    dataset = load_dataset(name, data_dir=folder.parent, download=False)
    assert dataset.complete and dataset.source == str(folder) and dataset.num_classes == 10
    assert dataset.train_features.shape == (60000, 1, 28, 28) and dataset.test_features.shape == (10000, 1, 28, 28)
    assert dataset.train_features.dtype == np.uint8 and dataset.train_labels.dtype == np.int64
    assert np.bincount(dataset.train_labels).tolist() == counts
    assert dataset.mean.item() / 255 == pytest.approx(mean, abs=5e-5) and dataset.std.item() / 255 == pytest.approx(std, abs=5e-5)
    assert load_dataset(name, data_dir=folder, download=False).digest == dataset.digest  # its own folder


def test_real_files_have_the_checksums_that_downloads_are_held_to() -> None:
    from fl_runtime.datasets.idx import _FASHION_MNIST, _MNIST

    for name, published in (("mnist", _MNIST), ("fashion-mnist", _FASHION_MNIST)):
        for remote in published.remote:
            data = (real_data(name) / remote.name).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (remote.sha256, remote.size)


def test_one_set_is_not_taken_for_the_other() -> None:
    with pytest.raises(DataError, match="is a file of Fashion-MNIST; must be one of MNIST"):
        load_dataset("mnist", data_dir=real_data("fashion-mnist"), accept_incomplete=True)


def test_real_incomplete_cifar_only_when_it_is_named() -> None:
    folder = real_data("cifar-10")
    if not (folder / "data_batch_1_n9990").exists():
        pytest.skip("CIFAR-10 is complete here")
    with pytest.raises(DataError, match="an incomplete copy lies in") as error:
        load_dataset("cifar-10", data_dir=folder.parent, download=False)
    assert str(folder) in one_line(error)
    dataset = load_dataset("cifar-10", data_dir=folder)
    assert not dataset.complete
    assert dataset.train_features.shape == (9990, 3, 32, 32) and dataset.test_features.shape == (9975, 3, 32, 32)
    assert np.bincount(dataset.train_labels).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1015, 981]
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 7 + [999, 976, 1000]
    assert dataset.mean.shape == (3, 1, 1)
    accepted = load_dataset("cifar-10", data_dir=folder.parent, accept_incomplete=True)
    assert not accepted.complete and accepted.digest == dataset.digest


@pytest.mark.parametrize(("name", "sizes", "shape", "classes"), [
    ("digits", (1437, 360), (1, 8, 8), 10), ("breast-cancer", (455, 114), (30,), 2), ("wine", (142, 36), (13,), 3)])  # fmt: skip
def test_embedded(name: str, sizes: tuple[int, int], shape: tuple[int, ...], classes: int) -> None:
    dataset = load_dataset(name, download=False)
    assert (len(dataset.train_features), len(dataset.test_features)) == sizes and dataset.shape == shape
    assert dataset.num_classes == classes and dataset.complete and dataset.source == "scikit-learn"
    assert load_dataset(name).digest == dataset.digest
    # nothing lost, nothing twice, and both parts have the same label mix
    original = getattr(sklearn.datasets, f"load_{name.replace('-', '_')}")()
    together = np.concatenate([dataset.train_features, dataset.test_features]).reshape(sum(sizes), -1).astype(np.float32)
    assert np.array_equal(np.unique(together, axis=0), np.unique(original.data.astype(np.float32), axis=0))
    share = [np.bincount(labels) / len(labels) for labels in (dataset.train_labels, dataset.test_labels)]
    assert np.abs(share[0] - share[1]).max() < 0.02


def test_standardized_train_part_has_mean_0_and_deviation_1() -> None:
    for name in ("digits", "breast-cancer", "wine"):
        dataset = load_dataset(name)
        features = dataset.standardize(dataset.train_features)
        axes = (0, 2, 3) if features.ndim == 4 else (0,)
        assert features.dtype == np.float32
        assert np.abs(features.mean(axis=axes, dtype=float)).max() < 1e-5
        assert np.abs(features.std(axis=axes, dtype=float) - 1).max() < 1e-4


def test_standardized_bytes_are_exact(tmp_path: Path) -> None:
    """The mean from counts of byte values is NumPy's own, and a feature that never varies is not divided by nothing."""
    arrays = idx_arrays()
    write_idx(tmp_path, arrays)
    dataset = load_dataset("mnist", data_dir=tmp_path, accept_incomplete=True)
    assert dataset.mean.item() == pytest.approx(arrays[0].mean()) and dataset.std.item() == pytest.approx(arrays[0].std())
    flat = make_dataset("flat", np.full((4, 2), 0.1), [0, 1, 0, 1], np.full((2, 2), 0.1), [0, 1], source="here")
    assert np.array_equal(flat.std, [1, 1]) and np.abs(flat.standardize(flat.train_features)).max() < 1e-7


# in every form and place


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_idx_forms_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, folder: str, by: str) -> None:
    arrays = idx_arrays()
    write_idx(tmp_path / "data" / folder, arrays, zipped=zipped)
    argument: Any = {"data_dir": str(tmp_path / "data")} if by == "argument" else {}
    if by == "variable":
        monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(tmp_path / "data"))
    dataset = load_dataset("mnist", accept_incomplete=True, **argument)
    assert not dataset.complete and dataset.source == str(tmp_path / "data" / folder).rstrip("/")
    assert np.array_equal(dataset.train_features[:, 0], arrays[0]) and np.array_equal(dataset.train_labels, arrays[1])
    assert np.array_equal(dataset.test_features[:, 0], arrays[2]) and np.array_equal(dataset.test_labels, arrays[3])


def test_names_with_a_dot(tmp_path: Path) -> None:
    for name, array in zip(IDX_NAMES, idx_arrays(), strict=True):
        (tmp_path / name.replace("-idx", ".idx")).write_bytes(idx_bytes(array))
    assert len(load_dataset("fashion-mnist", data_dir=tmp_path, accept_incomplete=True).train_labels) == 30


def test_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument, then variable, then cache; and a folder that lacks a file is passed over."""
    for seed, place in enumerate(("argument", "variable", "cache/mnist")):
        write_idx(tmp_path / place, idx_arrays(seed=seed))
    monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(tmp_path / "variable"))
    load = lambda **given: load_dataset("mnist", accept_incomplete=True, download=False, **given).source  # noqa: E731
    assert load(data_dir=tmp_path / "argument") == str(tmp_path / "argument")
    assert load() == str(tmp_path / "variable")
    (tmp_path / "argument" / f"{IDX_NAMES[3]}.gz").unlink()
    assert load(data_dir=tmp_path / "argument") == str(tmp_path / "variable")
    monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(tmp_path / "is not there"))
    assert load() == str(tmp_path / "cache" / "mnist")


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("folder", ["", "cifar-10", "cifar-10-batches-py"])
def test_cifar_forms_and_places(tmp_path: Path, form: str, folder: str) -> None:
    write_cifar(tmp_path / "files")
    place = tmp_path / "data" / folder
    place.mkdir(parents=True)
    for name in CIFAR_NAMES:
        if form == "folder":
            (tmp_path / "files" / name).rename(place / name)
    if form == "archive":
        with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "files", "cifar-10-batches-py")
    with pytest.raises(DataError, match="12 rows; CIFAR-10 has 10,000 in each batch"):
        load_dataset("cifar-10", data_dir=tmp_path / "data")
    dataset = load_dataset("cifar-10", data_dir=tmp_path / "data", accept_incomplete=True)
    assert dataset.train_features.shape == (60, 3, 32, 32) and dataset.test_features.shape == (12, 3, 32, 32)
    assert np.array_equal(dataset.test_features.reshape(12, -1), cifar_batch(12, 5)["data"]) and not dataset.complete
    assert np.array_equal(dataset.train_features[12:24].reshape(12, -1), cifar_batch(12, 1)["data"])


def test_incomplete_cifar_says_its_rows_and_is_never_taken_by_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "cifar-10"
    folder.mkdir(parents=True)
    (folder / "data_batch_2_n7").write_bytes(python2_pickle(cifar_batch(7)))
    (folder / "test_batch_n5").write_bytes(python2_pickle(cifar_batch(5)))
    monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(tmp_path / "data"))
    for given_dir in (None, tmp_path / "data"):
        with pytest.raises(DataError, match="an incomplete copy lies in"):
            load_dataset("cifar-10", data_dir=given_dir)
    assert not load_dataset("cifar-10", data_dir=folder).complete
    (folder / "test_batch_n5").rename(folder / "test_batch_n6")
    with pytest.raises(DataError, match="test_batch_n6: 5 rows; its name says 6"):
        load_dataset("cifar-10", accept_incomplete=True)
    (folder / "test_batch_n6").unlink()
    with pytest.raises(DataError, match="data set cifar-10: no "):
        load_dataset("cifar-10", data_dir=folder, accept_incomplete=True)


def test_batches_without_a_count_in_their_names_are_not_taken_for_an_incomplete_copy(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data set cifar-10: no "):
        load_dataset("cifar-10", data_dir=tmp_path)
    assert len(load_dataset("cifar-10", data_dir=tmp_path, accept_incomplete=True).train_labels) == 48


def test_svhn(tmp_path: Path) -> None:
    """A generated file: label 10 is the digit 0, axes are (channels, height, width)."""
    write_svhn(tmp_path / "svhn")
    with pytest.raises(DataError, match=r"train_32x32.mat: 20 samples; SVHN has 73,257"):
        load_dataset("svhn", data_dir=tmp_path)
    dataset = load_dataset("svhn", data_dir=tmp_path, accept_incomplete=True)
    arrays = svhn_arrays()
    assert dataset.shape == (3, 32, 32) and not dataset.complete and dataset.num_classes == 10
    assert dataset.train_features[7, 2, 3, 4] == arrays["X"][3, 4, 2, 7]
    assert dataset.train_labels.tolist() == [*range(1, 10), 0] * 2


# nothing found


@pytest.mark.parametrize("name", BUILT_IN[:4])
def test_missing_says_what_was_looked_for_where_and_the_ways_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(tmp_path / "from the variable"))
    (tmp_path / "given").mkdir()
    for download in (True, False):
        with pytest.raises(DataError) as error:
            load_dataset(name, data_dir=tmp_path / "given", download=download)
        text = one_line(error)
        for part in (name, "given", "from the variable", "cache", "--data-dir", "SCHEDOPT_DATA_DIR", "digits, breast-cancer, wine"):
            assert part in text
        assert ("127.0.0.1:9" in text) == download and error.value.exit_code == 4


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset = 'mnits'; must be one of mnist, fashion-mnist, cifar-10, svhn, digits"):
        load_dataset("mnits")
    with pytest.raises(InputError, match="data_dir = .*; must be a folder that exists"):
        load_dataset("mnist", data_dir=tmp_path / "nothing")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unreadable_file(tmp_path: Path) -> None:
    write_idx(tmp_path, idx_arrays())
    (tmp_path / f"{IDX_NAMES[0]}.gz").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        load_dataset("mnist", data_dir=tmp_path)


# damaged files: DataError, one line, the file's name


def load_idx(path: Path, data: bytes, name: str = IDX_NAMES[0]) -> Dataset:
    """The data set in ``path`` after one of its files was replaced."""
    (path / name).write_bytes(data)
    return load_dataset("mnist", data_dir=path, accept_incomplete=True, download=False)


def test_idx_truncated_anywhere(tmp_path: Path) -> None:
    images = idx_bytes(idx_arrays(train=2)[0])
    for whole in (images, idx_bytes(np.arange(10, dtype=np.uint8))):
        dimensions = whole[3]
        for length in range(len(whole)):
            with pytest.raises(DataError) as error:
                read_idx(whole[:length], dimensions)
            one_line(error)
    zipped = gzip.compress(images)
    arrays = idx_arrays(train=2)
    write_idx(tmp_path, arrays, zipped=False)
    for length in range(0, len(zipped), 17):
        with pytest.raises(DataError) as error:
            load_idx(tmp_path, zipped[:length])
        assert IDX_NAMES[0] in one_line(error)


@exactly(150)
@given(st.integers(0, 15), st.integers(1, 255))
def test_idx_header_flipped(position: int, change: int) -> None:
    data = bytearray(idx_bytes(idx_arrays(train=2)[0]))
    data[position] ^= change
    with pytest.raises(DataError):
        read_idx(bytes(data), 3)


@exactly(200)
@given(st.binary(max_size=60), st.sampled_from([1, 3]))
@example(b"\0\0\x08\x01\0\0\0\0", 1)
@example(b"\0\0\x08\x03" + b"\xff" * 12, 3)
def test_idx_garbage(data: bytes, dimensions: int) -> None:
    try:
        array = read_idx(data, dimensions)
    except DataError:
        return
    assert idx_bytes(array) == data  # what is read is what it says


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (0, b"", "0 bytes; the header"),
        (0, idx_bytes(np.zeros((30, 28), np.uint8)), "starts with 0x00000802; an idx file of 3 dimensions starts with 0x00000803"),
        (0, idx_bytes(np.zeros((30, 27, 28), np.uint8)), "images of 27 x 28; must be 28 x 28"),
        (0, idx_bytes(np.zeros((29, 28, 28), np.uint8)), "30 labels for 29 images"),
        (1, idx_bytes(np.full(30, 10, np.uint8)), "label = 10; must be in 0..9"),
        (0, gzip.compress(idx_bytes(np.zeros((30, 28, 28), np.uint8))) + b"junk", "damaged gzip file"),
        (0, gzip.compress(idx_bytes(np.zeros((30, 28, 28), np.uint8))) + gzip.compress(b"more"), "bytes after the header"),
        (0, gzip.compress(bytes(70 * 2**20), 1), "gzip: expands to more than"),
        (0, b"\x1f\x8b" + bytes(30), "damaged gzip file"),
    ],
)
def test_wrong_idx_files(tmp_path: Path, name: int, data: bytes, message: str) -> None:
    write_idx(tmp_path, idx_arrays(), zipped=False)
    with pytest.raises(DataError, match=message) as error:
        load_idx(tmp_path, data, IDX_NAMES[name])
    assert IDX_NAMES[name] in one_line(error) or "labels for" in message


def test_empty_parts_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, idx_arrays(train=0))
    with pytest.raises(DataError, match="none of them 0"):
        load_dataset("mnist", data_dir=tmp_path, accept_incomplete=True)


def test_altered_contents_are_not_the_published_data_set(tmp_path: Path) -> None:
    """Of the right size, and one pixel differs."""
    source = real_data("mnist")
    for name in IDX_NAMES:
        (tmp_path / name).write_bytes(gzip.decompress((source / f"{name}.gz").read_bytes()))
    assert load_dataset("mnist", data_dir=tmp_path).complete
    data = bytearray((tmp_path / IDX_NAMES[2]).read_bytes())
    data[5000] ^= 1
    (tmp_path / IDX_NAMES[2]).write_bytes(data)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: not the contents that MNIST was published with"):
        load_dataset("mnist", data_dir=tmp_path)
    assert not load_dataset("mnist", data_dir=tmp_path, accept_incomplete=True).complete


class Malicious:
    """Unpickling this the ordinary way would call ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def attack(what: Any, where: str = "data") -> dict[str, Any]:
    return {**cifar_batch(3), where: what}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "batch",
    [
        Malicious(os.mkdir, "pwned"),
        attack(Malicious(os.mkdir, "pwned")),
        attack([[(Malicious(os.mkdir, "pwned"),)]], "labels"),
        attack(Malicious(eval, "__import__('os').mkdir('pwned')")),
        attack(Malicious(getattr, pickle.Pickler, "dump")),
        attack(Malicious(np.load, "pwned")),
        attack(Malicious(pickle.loads, pickle.dumps(Malicious(os.mkdir, "pwned")))),
        {Malicious(os.mkdir, "pwned"): 1},
        attack(Malicious(np.ndarray, (2, 3072))),
        attack(Malicious(np.zeros(1).__reduce__()[0], Malicious(os.mkdir, "pwned"), (0,), b"b")),
    ],
)
def test_malicious_pickles_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, batch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch_n3").write_bytes(pickle.dumps(cifar_batch(3), 2))
    (tmp_path / "data_batch_1_n3").write_bytes(pickle.dumps(batch, protocol))
    with pytest.raises(DataError, match="pickle that asks for|pickle that calls|pickle instruction") as error:
        load_dataset("cifar-10", data_dir=tmp_path)
    assert "data_batch_1_n3" in one_line(error)
    assert not (tmp_path / "pwned").exists()


NESTED = b"\x80\x02K\x01" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60)) + b"}q\xffh\x3ch\x3cs."
STAND_IN = b"\x80\x02cnumpy\ndtype\n"


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'mkdir pwned'\ntR.",
        b"(S'mkdir pwned'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0bmkdir pwned\x85R.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # a registered extension
        b"P1\n.",  # a persistent id
        NESTED,
        STAND_IN + b"}U\x04codeK\x01sb.",  # changes the stand-in itself
        STAND_IN + b"N}U\x09_functionK\x01s\x86b.",
        b"\x80\x02]r\xff\xff\xff\x7f.",  # an address far out: a table of 16 GiB
        b"\x80\x02T\xff\xff\xff\x7f.",  # 2 GiB of string in no bytes
        b"\x80\x02\x8b\x04\x00\x00\x00\x00\x00\x00\x80.",
        b"\x80\x02J\x01\x00\x00\x00",
        b"(" * 100_000 + b".",
        b"\x80\x02]" + b"(" + b"]" * 1000 + b"e.",
        b"0" * 1000 + b".",
        b"\x80\x09N.",
        pickle.dumps({b"data": b"x" * 3072, b"labels": [1]}, 2),
        pickle.dumps({**cifar_batch(3), "data": np.zeros((3, 3072), np.int16)}, 2),
        pickle.dumps({**cifar_batch(3), "data": np.zeros((3, 3072), object)}, 2),
        pickle.dumps({**cifar_batch(3), "data": np.zeros((3, 3071), np.uint8)}, 2),
        pickle.dumps({**cifar_batch(3), "labels": [1, 2]}, 2),
        pickle.dumps({**cifar_batch(3), "labels": [1, 2, 10]}, 2),
        pickle.dumps({**cifar_batch(3), "labels": [1, 2, True]}, 2),
        pickle.dumps({**cifar_batch(3), "labels": (1, 2, 3)}, 2),
        pickle.dumps([1, 2], 2),
        pickle.dumps({**cifar_batch(3), "data": np.zeros((0, 3072), np.uint8), "labels": []}, 2),
        pickle.dumps(cifar_batch(3), 2) + b"junk",
    ],
)
def test_wrong_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch_n3").write_bytes(pickle.dumps(cifar_batch(3), 2))
    (tmp_path / "data_batch_1_n3").write_bytes(data)
    with pytest.raises(DataError) as error:
        load_dataset("cifar-10", data_dir=tmp_path)
    assert "data_batch_1_n3" in one_line(error)
    assert not (tmp_path / "pwned").exists()
    assert array_of(load_plain_pickle(pickle.dumps(cifar_batch(1), 2))["data"]) is not None  # the stand-ins are as they were


def test_pickle_truncated_anywhere() -> None:
    whole = pickle.dumps({"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2]}, 2)
    assert np.array_equal(array_of(load_plain_pickle(whole)["data"]), np.arange(6).reshape(2, 3))
    for length in range(len(whole)):
        with pytest.raises(DataError) as error:
            load_plain_pickle(whole[:length])
        one_line(error)


@exactly(500)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_pickle_flipped(changes: list[tuple[int, int]]) -> None:
    """Whatever the bytes say: plain data or a DataError."""
    data = bytearray(pickle.dumps({"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2]}, 2))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        load_plain_pickle(bytes(data))
    except DataError as error:
        assert "\n" not in str(error)


def test_pickle_of_every_protocol_that_has_no_buffers() -> None:
    for protocol in (2, 3, 4):
        batch = load_plain_pickle(pickle.dumps(cifar_batch(3), protocol))
        assert np.array_equal(array_of(batch["data"]), cifar_batch(3)["data"]) and batch["labels"] == [0, 1, 2]
    batch = load_plain_pickle(pickle.dumps({"data": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))}, 2))
    assert np.array_equal(array_of(batch["data"]), np.arange(6).reshape(2, 3))
    batch = load_plain_pickle(python2_pickle(cifar_batch(3)))
    assert np.array_equal(array_of(batch[b"data"]), cifar_batch(3)["data"]) and batch[b"labels"] == [0, 1, 2]


def test_archive_truncated_or_flipped(tmp_path: Path) -> None:
    write_cifar(tmp_path / "files", rows=1)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(tmp_path / "files", "cifar-10-batches-py")
    whole = buffer.getvalue()
    path = tmp_path / "cifar-10-python.tar.gz"
    rng = np.random.default_rng(0)
    for length in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError) as error:
            load_dataset("cifar-10", data_dir=tmp_path, accept_incomplete=True)
        assert path.name in one_line(error)
    plain = gzip.decompress(whole)
    for _ in range(80):  # uncompressed, so that the headers themselves are hit
        damaged = bytearray(plain)
        for position in rng.integers(0, 1600, 3):
            damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_dataset("cifar-10", data_dir=tmp_path, accept_incomplete=True)
        except DataError as error:
            assert path.name in str(error) and "\n" not in str(error)


def test_archive_with_links_and_without_batches(tmp_path: Path) -> None:
    """Only regular files are read, and nothing is unpacked."""
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in CIFAR_NAMES:
            link = tarfile.TarInfo(f"../{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    with pytest.raises(DataError, match="holds no data_batch_1, "):
        load_dataset("cifar-10", data_dir=tmp_path, accept_incomplete=True)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"y": svhn_arrays()["y"]}, "holds no X; must be uint8"),
        ({"X": svhn_arrays()["X"]}, "holds no y; must be numbers"),
        ({**svhn_arrays(), "X": svhn_arrays()["X"].astype(float)}, r"X is float64 of shape \(32, 32, 3, 20\)"),
        ({**svhn_arrays(), "X": svhn_arrays()["X"][..., 0]}, r"X is uint8 of shape \(32, 32, 3\)"),
        ({**svhn_arrays(), "y": svhn_arrays()["y"][1:]}, r"y is uint8 of shape \(19, 1\); must be numbers of shape \(20, 1\)"),
        ({**svhn_arrays(), "y": svhn_arrays()["y"] - 1}, "y holds something else than whole numbers in 1..10"),
        ({**svhn_arrays(), "y": svhn_arrays()["y"] + 0.5}, "y holds something else than whole numbers in 1..10"),
        ({**svhn_arrays(), "y": np.full((20, 1), np.nan)}, "y holds something else than whole numbers in 1..10"),
        ({**svhn_arrays(), "y": "text"}, "'y' is no array of real numbers"),
        ({**svhn_arrays(), "X": {"a": 1}}, "'X' is no array of real numbers"),
        ({**svhn_arrays(), "z": svhn_arrays()["X"] * 1j}, "'z' is no array of real numbers"),
    ],
)
def test_wrong_mat_files(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(DataError, match=message) as error:
        load_dataset("svhn", data_dir=tmp_path, accept_incomplete=True)
    assert "train_32x32.mat" in one_line(error)


@pytest.mark.parametrize("compressed", [False, True])
def test_mat_truncated_or_flipped(compressed: bool) -> None:
    buffer = io.BytesIO()
    savemat(buffer, svhn_arrays(2), do_compression=compressed)
    whole = buffer.getvalue()
    for length in [*range(300), *range(300, len(whole), 61)]:
        with pytest.raises(DataError) as error:
            read_svhn(whole[:length])
        one_line(error)
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[int(rng.integers(0, 260))] ^= int(rng.integers(1, 256))
        try:
            images, labels = read_svhn(bytes(damaged))
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert images.shape[1:] == (3, 32, 32) and len(images) == len(labels)


# more data sets


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registry, emptied for the test and put back after it."""
    monkeypatch.setattr(registry_module, "_registered", {})
    return registry_module._registered


def load_mine(request: DataRequest) -> Dataset:
    path = request.file("mine.npz")
    with np.load(path) as data:
        return make_dataset(request.name, data["x"], data["y"], data["x"], data["y"], source=str(path.parent))


def test_a_registered_data_set(tmp_path: Path, registered: dict[str, Any]) -> None:
    register_dataset("mine", load_mine)
    register_dataset("mine", load_mine)  # again is nothing new
    assert dataset_names() == (*BUILT_IN, "mine")
    with pytest.raises(DataError, match="data set mine: no mine.npz in "):
        load_dataset("mine")
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "mine.npz", x=np.eye(3), y=[0, 1, 2])
    dataset = load_dataset("mine", data_dir=tmp_path)
    assert dataset.shape == (3,) and dataset.num_classes == 3 and dataset.train_features.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        dataset.train_features[0] = 1
    assert dataset.digest == load_dataset("mine", data_dir=tmp_path / "mine").digest
    for name in ("mnist", "", "a/b", ".."):
        with pytest.raises(InputError, match="data set = "):
            register_dataset(name, load_mine)
    with pytest.raises(InputError, match="there is one of this name already"):
        register_dataset("mine", lambda request: load_mine(request))


def test_a_data_set_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry point, as pip writes it."""
    info = tmp_path / "packages" / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fl_runtime.datasets]\nmine = my_data_package:load\nbroken = my_data_package:nothing\n")
    (info.parent / "my_data_package.py").write_text(
        "from fl_runtime.datasets import make_dataset\n"
        "def load(request):\n    return make_dataset(request.name, [[1.0], [2.0]], [0, 1], [[1.0]], [0], source='made up')\n"
    )
    monkeypatch.syspath_prepend(info.parent)
    importlib.invalidate_caches()
    assert "mine" in dataset_names()
    assert load_dataset("mine").source == "made up"
    with pytest.raises(DataError, match="data set broken: my_data_package:nothing cannot be loaded: AttributeError"):
        load_dataset("broken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_features": np.zeros((4, 3))}, r"train features have shape \(3,\), test features \(2,\)"),
        ({"train_features": np.array([["a", "b"]] * 4)}, "train features are <U1; must be numbers"),
        ({"train_features": np.full((4, 2), np.nan)}, "NaN or infinite"),
        ({"train_features": np.zeros(4)}, r"have shape \(4,\)"),
        ({"train_labels": [0, 1]}, r"train labels are int64 of shape \(2,\); must be whole numbers, one for each of 4 samples"),
        ({"train_labels": [0.0, 1.0, 0.0, 1.0]}, "train labels are float64"),
        ({"train_labels": [0, -1, 0, 1]}, "train label = -1"),
        ({"test_labels": [7]}, "test label = 7; must be in 0..1"),
    ],
)
def test_make_dataset_checks(changes: dict[str, Any], message: str) -> None:
    arrays = {
        "train_features": np.zeros((4, 2)), "train_labels": [0, 1, 0, 1], "test_features": np.zeros((1, 2)), "test_labels": [0],
    }  # fmt: skip
    with pytest.raises(DataError, match=message) as error:
        make_dataset("mine", **{**arrays, **changes}, source="here")
    assert one_line(error).startswith("here: mine: ")


def test_a_loader_that_gives_something_else(registered: dict[str, Any]) -> None:
    register_dataset("mine", lambda request: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(DataError, match="data set mine: its loader gives int"):
        load_dataset("mine")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, fl_runtime.device_data, fl_runtime.datasets\n"
        "assert not {'scipy', 'sklearn', 'pooch', 'requests', 'torch', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
