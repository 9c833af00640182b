"""Downloads: checksums, mirrors, resumed pieces and servers that misbehave, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_files import IDX_NAMES, WebServer, real_data, web_server
from rich.console import Console

from fl_runtime.datasets import DataRequest, Dataset, load_dataset, make_dataset, register_dataset
from fl_runtime.datasets import fetch as fetch_module
from fl_runtime.datasets import registry as registry_module
from fl_runtime.datasets.fetch import RemoteFile, fetch
from fl_runtime.datasets.progress import download_bars
from fl_runtime.errors import DataError
from schedopt.errors import InputError

DATA = np.random.default_rng(0).bytes(300_000)
FILE = RemoteFile("file.bin", hashlib.sha256(DATA).hexdigest(), (), len(DATA))
PART = "file.bin.part"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "SCHEDOPT_DATA_DIR", "SCHEDOPT_DATA_URL"):
        monkeypatch.delenv(name, raising=False)
    with web_server() as state:
        state.files["set/file.bin"] = DATA
        yield state


def get(server: WebServer, folder: Path, file: RemoteFile = FILE) -> bytes:
    path = fetch(file, folder, dataset="set", data_url=server.url)
    assert path == folder / file.name
    assert [entry.name for entry in folder.iterdir()] == [file.name]  # no litter
    return path.read_bytes()


def ranges(server: WebServer) -> list[str | None]:
    return [asked for _, asked in server.requests]


def test_downloaded_once(server: WebServer, tmp_path: Path) -> None:
    assert get(server, tmp_path / "new" / "folder") == DATA
    assert get(server, tmp_path / "new" / "folder") == DATA
    assert server.requests == [("/set/file.bin", None)]


def test_damaged_in_the_cache_is_fetched_anew(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(DATA[:-1])
    assert get(server, tmp_path) == DATA


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_broken_connection_goes_on_where_it_stopped(server: WebServer, tmp_path: Path, tells_length: bool) -> None:
    """Also if only the published size tells that something is missing."""
    server.breaks_after, server.tells_length = 100_000, tells_length
    assert get(server, tmp_path) == DATA
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-"]


def test_an_interrupted_download_goes_on_at_the_next_call(server: WebServer, tmp_path: Path) -> None:
    server.breaks_after = 10_000
    with pytest.raises(DataError, match=r"breaks off after 40,000 of 300,000 bytes \(its first 40,000 bytes are kept") as error:
        get(server, tmp_path)
    assert "\n" not in str(error.value) and (tmp_path / PART).read_bytes() == DATA[:40_000]
    server.breaks_after = None
    server.requests.clear()
    assert get(server, tmp_path) == DATA
    assert ranges(server) == ["bytes=40000-"]


def test_a_server_that_knows_no_ranges(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(DATA[:1000])
    server.ranges = False
    assert get(server, tmp_path) == DATA
    assert len(server.requests) == 1


def test_a_wrong_piece_is_dropped_and_fetched_anew_once(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(b"something else")
    assert get(server, tmp_path) == DATA
    assert ranges(server) == ["bytes=14-", None]


def test_a_wrong_file_is_not_asked_for_again(server: WebServer, tmp_path: Path) -> None:
    server.files["set/file.bin"] = DATA[::-1]
    (tmp_path / PART).write_bytes(DATA[:5])
    for asked in (["bytes=5-", None], [None]):
        with pytest.raises(DataError, match="file.bin gives a file with another checksum than published"):
            get(server, tmp_path)
        assert ranges(server) == asked and list(tmp_path.iterdir()) == []
        server.requests.clear()


def test_a_piece_that_is_whole_already(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(DATA)
    assert get(server, tmp_path) == DATA
    assert ranges(server) == [f"bytes={len(DATA)}-"]


def test_a_piece_that_is_too_long(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(DATA + b"more")
    assert get(server, tmp_path) == DATA
    assert ranges(server) == [f"bytes={len(DATA) + 4}-", None]


def test_a_server_that_sends_too_much(server: WebServer, tmp_path: Path) -> None:
    server.surplus = b"x" * 100
    with pytest.raises(DataError, match="sends more than the 300,000 bytes that the file has"):
        get(server, tmp_path)
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_that_refuses(server: WebServer, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DataError, match=f"/set/file.bin answers {status}"):
        get(server, tmp_path)
    assert len(server.requests) == 1 and list(tmp_path.iterdir()) == []


def test_a_server_that_goes_on_elsewhere(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(DATA[:1000])
    server.starts_at = 5
    assert get(server, tmp_path) == DATA
    assert ranges(server) == ["bytes=1000-", None]


def test_a_broken_answer_of_unknown_length(server: WebServer, tmp_path: Path) -> None:
    """In chunks, so that the end is told by the last one; and no size is published."""
    unsized = RemoteFile("file.bin", FILE.sha256, ())
    server.chunked = True
    assert get(server, tmp_path / "a", unsized) == DATA
    server.breaks_after = 100_000
    assert get(server, tmp_path / "b", unsized) == DATA
    assert ranges(server) == [None, None, "bytes=100000-", "bytes=200000-"]


def test_mirrors_are_tried_in_order(server: WebServer, tmp_path: Path) -> None:
    urls = tuple(f"{server.url}/{name}/file.bin" for name in ("gone", "wrong", "set"))
    server.files["wrong/file.bin"] = b"?"
    path = fetch(RemoteFile("file.bin", FILE.sha256, urls), tmp_path, dataset="any")
    assert path.read_bytes() == DATA and [asked for asked, _ in server.requests] == [f"/{n}/file.bin" for n in ("gone", "wrong", "set")]
    with pytest.raises(DataError, match=r"gone/file.bin answers 404 Not Found; .*wrong/file.bin gives a file with another checksum"):
        fetch(RemoteFile("file.bin", FILE.sha256, urls[:2]), tmp_path / "other", dataset="any")


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="http://127.0.0.1:9/set/file.bin cannot be reached$"):
        fetch(FILE, tmp_path, dataset="set", data_url="http://127.0.0.1:9/")


def test_bad_address(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SCHEDOPT_DATA_URL = 'ftp://x'; must start with http:// or https://"):
        fetch(FILE, tmp_path, dataset="set", data_url="ftp://x")


def test_a_cache_that_cannot_be_written(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot be written"):
        get(server, tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="the system has no such locks")
def test_somebody_else_downloads_the_same_file(server: WebServer, tmp_path: Path) -> None:
    """Their piece is left alone, and ours does not go through it."""
    import fcntl

    with open(tmp_path / PART, "wb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        theirs.write(b"theirs")
        theirs.flush()
        path = fetch(FILE, tmp_path, dataset="set", data_url=server.url)
        assert path.read_bytes() == DATA and (tmp_path / PART).read_bytes() == b"theirs"


def test_progress(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts up to the whole, also over a break, and is drawn on the console that is given."""
    monkeypatch.setattr(fetch_module, "_CHUNK", 2**14)
    server.breaks_after = 200_000
    told: list[tuple[str, int, int | None]] = []
    fetch(FILE, tmp_path / "a", dataset="set", data_url=server.url, progress=lambda *state: told.append(state))
    done = [state[1] for state in told]
    assert done == sorted(done) and done[-1] == len(DATA) and {(state[0], state[2]) for state in told} == {("file.bin", len(DATA))}
    text = io.StringIO()
    with download_bars(Console(file=text, width=100)) as progress:
        assert text.getvalue() == ""
        fetch(FILE, tmp_path / "b", dataset="set", data_url=server.url, progress=progress)
    assert "file.bin" in text.getvalue() and "300.0/300.0 kB" in text.getvalue()


def test_nothing_is_printed(server: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    get(server, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_published_data_set(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST by argument and by variable, once over a broken connection; then without a network, from the cache."""
    folder = real_data("mnist")
    monkeypatch.setenv("SCHEDOPT_CACHE_DIR", str(tmp_path))
    for name in IDX_NAMES:
        server.files[f"mnist/{name}.gz"] = (folder / f"{name}.gz").read_bytes()
    server.breaks_after = 5_000_000
    dataset = load_dataset("mnist", data_url=server.url)
    assert dataset.complete and dataset.source == str(tmp_path / "mnist") and len(server.requests) == 5
    server.requests.clear()
    monkeypatch.setenv("SCHEDOPT_DATA_URL", server.url)
    (tmp_path / "mnist" / f"{IDX_NAMES[1]}.gz").write_bytes(b"damaged")
    assert load_dataset("mnist").digest == dataset.digest
    assert server.requests == [(f"/mnist/{IDX_NAMES[1]}.gz", None)]
    monkeypatch.setenv("SCHEDOPT_DATA_URL", "http://127.0.0.1:9")
    assert load_dataset("mnist").digest == load_dataset("mnist", download=False).digest == dataset.digest


def test_a_data_set_of_ones_own_is_downloaded(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(registry_module, "_registered", {})
    buffer = io.BytesIO()
    np.savez(buffer, x=np.eye(3), y=[0, 1, 2])
    server.files["mine.npz"] = buffer.getvalue()

    def load(request: DataRequest) -> Dataset:
        path = request.file("mine.npz", url=f"{server.url}/mine.npz", sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
        with np.load(path) as data:
            return make_dataset(request.name, data["x"], data["y"], data["x"], data["y"], source=str(path.parent))

    register_dataset("mine", load)
    assert load_dataset("mine").source == str(tmp_path / "mine")
    assert load_dataset("mine", download=False).num_classes == 3
