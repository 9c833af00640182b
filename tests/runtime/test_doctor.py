"""What ``schedopt doctor`` tells of data sets is what ``schedopt simulate`` would find."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from data_files import IDX_NAMES, cifar_batch, idx_arrays, real_data, write_idx

from fl_runtime.datasets import DataRequest, Dataset, dataset_names, make_dataset, registry
from schedopt.cli import main

EMBEDDED = {
    "digits": "1,437 + 360 samples of 1 x 8 x 8, from scikit-learn",
    "breast-cancer": "455 + 114 samples of 30, from scikit-learn",
    "wine": "142 + 36 samples of 13, from scikit-learn",
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data but what a test makes."""
    monkeypatch.delenv("SCHEDOPT_DATA_DIR", raising=False)
    monkeypatch.setenv("SCHEDOPT_CACHE_DIR", str(tmp_path / "cache"))


def doctor(*arguments: str) -> dict[str, dict[str, Any]]:
    outcome = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert outcome.exit_code == 0, outcome.output
    return {entry["name"]: entry for entry in json.loads(outcome.stdout)["data_sets"]}


def test_without_files(tmp_path: Path) -> None:
    found = doctor()
    assert list(found) == list(dataset_names())
    for name, entry in found.items():
        assert entry["usable"] == (name in EMBEDDED)
        assert "\n" not in entry["detail"] + (entry["remedy"] or "")
    assert {name: found[name]["detail"] for name in EMBEDDED} == EMBEDDED
    assert found["mnist"]["detail"] == f"no {IDX_NAMES[0]}.gz in {tmp_path / 'cache' / 'mnist'}"
    assert "downloads it" in found["mnist"]["remedy"] and "SCHEDOPT_DATA_DIR" in found["mnist"]["remedy"]


def load_mine(request: DataRequest) -> Dataset:
    path = request.file("mine.csv")
    values = np.loadtxt(path, delimiter=",")
    return make_dataset(request.name, values, [0, 1, 1], values[:1], [0], source=str(path.parent))


@pytest.mark.parametrize("by", ["option", "variable", "cache"])
def test_with_files(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that somebody added is told too."""
    monkeypatch.setattr(registry, "_registered", {"mine": load_mine})
    root = tmp_path / ("cache" if by == "cache" else "data")
    (root / "mine").mkdir(parents=True)
    (root / "mine" / "mine.csv").write_text("1,2\n3,4\n5,7\n")
    if by == "variable":
        monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(root))
    mine = doctor(*(["--data-dir", str(root)] if by == "option" else []))["mine"]
    assert mine == {"name": "mine", "usable": True, "detail": f"3 + 1 samples of 2, from {root / 'mine'}", "remedy": None}


def test_real_files() -> None:
    folder = real_data("mnist")
    mnist = doctor("--data-dir", str(folder.parent))["mnist"]
    assert mnist["usable"] is True and mnist["detail"] == f"60,000 + 10,000 samples of 1 x 28 x 28, from {folder}"


def test_an_incomplete_data_set_is_not_usable(tmp_path: Path) -> None:
    """Neither beside others nor in a folder named by the user, where it says itself that it is incomplete."""
    folder = tmp_path / "cifar-10"
    folder.mkdir()
    for name in ("data_batch_1_n12", "test_batch_n7"):
        (folder / name).write_bytes(pickle.dumps(cifar_batch(int(name.rpartition("n")[2])), protocol=2))
    beside = doctor("--data-dir", str(tmp_path))["cifar-10"]
    assert beside["usable"] is False and f"an incomplete copy lies in {folder}" in beside["detail"]
    named = doctor("--data-dir", str(folder))["cifar-10"]
    assert named["usable"] is False and named["detail"] == f"incomplete: 12 + 7 samples of 3 x 32 x 32, from {folder}"
    assert named["remedy"]


def test_damaged_files(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", idx_arrays())
    path = tmp_path / "mnist" / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:100])
    mnist = doctor("--data-dir", str(tmp_path))["mnist"]
    assert mnist["usable"] is False and str(path) in mnist["detail"] and "ends too early" in mnist["detail"]
    assert mnist["remedy"] == "replace it; or remove it, and 'schedopt simulate' downloads it"


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits = doctor()["digits"]
    assert digits["usable"] is False and digits["detail"] == "scikit-learn is not installed, which brings this data set"
    assert digits["remedy"] == "pip install 'schedopt[runtime]'"


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["doctor", "--data-dir", str(tmp_path / "no")])
    assert outcome.exit_code == 2 and "must be a folder that exists" in outcome.output and outcome.output.count("\n") == 1
