"""Every study runs, goes on where it stopped, and measures what it says; tiny problems and one seed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make, plain_assignment, plain_device, plain_problem
from tiny import tiny_problem

from benchmarks.cases import PROBLEMS
from benchmarks.studies import heterogeneity, misestimation
from benchmarks.studies.__main__ import STUDIES, get_study, main
from benchmarks.studies.common import changed, solved, train
from benchmarks.studies.frame import Options, Record, load_records, run_items
from schedopt.constraints import validate_schedule
from schedopt.errors import InputError
from schedopt.io import load_problem, save_problem
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.robust import Margins, worst_case
from schedopt.schedule import Schedule


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny problem in a file."""
    path = tmp_path_factory.mktemp("studies") / "tiny.json"
    save_problem(path, tiny_problem(np.random.default_rng(5), 2, 1, 3, max_steps=2))
    return path


def cut(problem: Problem, devices: int, slots: int, tasks: tuple[str, ...]) -> Problem:
    """The first devices, slots and some tasks of a problem."""

    def less(data: dict[str, Any]) -> None:
        data["horizon"]["slots"] = slots
        data["tasks"] = [task for task in data["tasks"] if task["name"] in tasks]
        data["devices"] = data["devices"][:devices]
        for device in data["devices"]:
            device["gain"] = device["gain"][:slots]
            device["tasks"] = {name: pair for name, pair in device["tasks"].items() if name in tasks}

    return changed(problem, less)


@pytest.fixture(scope="module")
def trainable() -> Problem:
    """Three devices that train two small models for six slots."""
    return cut(load_problem(PROBLEMS / "quickstart.json"), 3, 6, ("breast-cancer", "wine"))


@pytest.fixture(scope="module")
def trainable_file(trainable: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studies") / "trainable.json"
    save_problem(path, trainable)
    return path


def run(study: str, output: Path, *arguments: str, limit_s: float = 3.0) -> list[Record]:
    """A short run by the command line; its records. The limit is for slow machines: tiny problems end by themselves."""
    more = ["--plot", str(output.with_suffix(".png"))] if find_spec("matplotlib") else []
    assert main([study, "--short", "--time-limit", str(limit_s), "-o", str(output), *arguments, *more]) == 0
    if more:
        assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return load_records(get_study(study), output)


def test_misestimation(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = run("misestimation", tmp_path / "mis.json", "--problems", str(tiny_file))
    assert [r.item["margin"] for r in records if r.item["share"]] == list(misestimation.MARGINS)
    truth = load_problem(tiny_file)
    (known,) = [r.result["objective"] for r in records if r.item["share"] == 0]
    optimum = evaluate_objective(truth, solved(truth, 5.0)[0]).objective
    assert known == pytest.approx(optimum, rel=1e-3)
    for record in records:
        lost = misestimation.losses(records, str(tiny_file), record.item["share"], record.item["margin"])
        assert lost == [pytest.approx(record.result["objective"] / known - 1)]
        assert record.result["objective"] >= optimum * (1 - 1e-6)
        if record.item["margin"] in ("robust", "all"):
            assert record.result["dropped"] == 0
    assert "Misestimated constants" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_what_is_planned_for_the_worst_is_executed_whole(seed: int) -> None:
    """Nothing is dropped, budgets hold, and devices that know themselves do no worse than the plan."""
    rng = np.random.default_rng(seed)
    truth = changed(tiny_problem(rng, 2, 1, 3, max_steps=2), lambda data: [d.update(energy_budget_j=0.1) for d in data["devices"]])
    believed = misestimation.misestimate(truth, 0.3, rng)
    corner = worst_case(believed, Margins.everywhere(0.3))
    schedule, result = solved(corner, 1.0)
    made, dropped = misestimation.execute(truth, schedule)
    assert dropped == 0 and len(made) == len(schedule)
    assert validate_schedule(truth, made).feasible
    evaluation = evaluate_objective(truth, made)
    assert evaluation.objective <= evaluate_objective(truth, schedule).objective * (1 + 1e-9)
    assert evaluation.objective <= result.objective * (1 + 1e-9)


def test_uploads_that_cannot_be_made_are_dropped() -> None:
    """A channel far worse than believed, and a budget that lasts for two of three uploads."""
    data = plain_problem([plain_device("d0"), plain_device("d1")], slots=3)
    assignments = [plain_assignment(device=name, start=g, end=g + 1) for g in range(3) for name in ("d0", "d1")]
    problem, schedule = make(data, assignments)
    made, dropped = misestimation.execute(problem, schedule)
    assert dropped == 0 and len(made) == 6
    lost = changed(problem, lambda data: data["devices"][0].update(gain=1e-8))
    made, dropped = misestimation.execute(lost, schedule)
    assert dropped == 3 and set(made.device) == {1}
    each = float(evaluate_objective(problem, misestimation.execute(problem, schedule)[0]).physics.energy_j[0])
    poor = changed(problem, lambda data: data["devices"][1].update(energy_budget_j=2.5 * each))
    made, dropped = misestimation.execute(poor, schedule)
    assert dropped == 1 and made.start[made.device == 1].tolist() == [0, 1] and validate_schedule(poor, made).feasible


def test_a_study_goes_on_where_it_stopped(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, path = get_study("drift"), tmp_path / "drift.json"
    options = Options(short=True, time_limit_s=0.5, problems=(str(tiny_file),))
    real, done = study.measure, []

    def interrupted(item: dict[str, Any]) -> dict[str, Any]:
        done.append(item)
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(item)

    object.__setattr__(study, "measure", interrupted)
    try:
        records, stopped = run_items(study, options, path)
        assert stopped and len(records) == 1
        records, stopped = run_items(study, options, path)
        assert not stopped and [r.item for r in records] == [done[0], done[2]] and done[1] == done[2]
        assert run_items(study, options, path) == (records, False) and len(done) == 3
    finally:
        object.__setattr__(study, "measure", real)


def test_drift_makes_schedules_fresher(tmp_path: Path) -> None:
    path = tmp_path / "drifting.json"
    save_problem(path, cut(load_problem(PROBLEMS / "quickstart.json"), 3, 8, ("digits",)))
    still, moving = run("drift", tmp_path / "drift.json", "--problems", str(path))
    assert moving.result["tasks"]["digits"]["staleness"] <= still.result["tasks"]["digits"]["staleness"]
    assert moving.result["tasks"]["digits"]["fresh"] == 1.0


def test_importance(trainable_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    less, more = run("importance", tmp_path / "importance.json", "--problems", str(trainable_file))
    assert less.item["factor"] < 1 < more.item["factor"] and less.item["task"] == "breast-cancer"
    own, other = ([r.result["tasks"][name] for r in (less, more)] for name in ("breast-cancer", "wine"))
    assert own[1]["bound"] < own[0]["bound"] and other[1]["bound"] > other[0]["bound"]
    assert own[1]["energy_j"] > own[0]["energy_j"]
    assert all(0 < run["wine"]["accuracy"] <= 1 for r in (less, more) for run in r.result["training"])
    assert "breast-cancer *" in capsys.readouterr().out


def test_start(trainable_file: Path, tmp_path: Path) -> None:
    cold, warm = run("start", tmp_path / "start.json", "--problems", str(trainable_file))
    assert warm.item["passes"] == 1
    for name, gap in warm.result["gaps"].items():
        # the warm start is where the cold run ended
        assert gap == pytest.approx(cold.result["cold"]["training"][name]["loss"], rel=1e-6)
    assert warm.result["own"]["energy_j"] < warm.result["cold"]["energy_j"]


def test_training_from_given_models(trainable: Problem) -> None:
    schedule, _ = solved(trainable, 0.5)
    first, models = train(trainable, schedule, 0)
    second, _ = train(trainable, schedule, 0, start=models)
    assert all(second[name]["first_loss"] == pytest.approx(first[name]["loss"], rel=1e-6) for name in first)


def test_quartile_shares() -> None:
    delta, uploads = np.array([3.0, 1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 6.0]), np.array([1.0, 2.0, 0.0, 2.0, 1.0, 0.0, 1.0, 3.0])
    assert heterogeneity.quartile_shares(delta, uploads) == pytest.approx([0.4, 0.1, 0.3, 0.2])


def test_dissimilarity_is_measured_on_the_data(trainable: Problem) -> None:
    """Against gradients by autograd at the initial model, which an untrained run leaves as it is."""
    import torch

    from fl_runtime.datasets import load_dataset
    from fl_runtime.device_data import make_task_data
    from fl_runtime.drift import DriftSpec
    from fl_runtime.models import build_model, initial_parameters
    from fl_runtime.partition import PartitionSpec
    from fl_runtime.task_run import DATA_STREAM, MODEL_STREAM, seed_of

    found = heterogeneity.measured_dissimilarity(trainable, Schedule.empty(), 3, "dirichlet:0.3")
    data = load_dataset("wine", download=False)
    sizes = [int(n) for n in trainable.arrays.samples[:, 1]]
    specs = PartitionSpec.parse("dirichlet:0.3"), DriftSpec.parse("", {})
    held = make_task_data(data, sizes, *specs, slots=6, seed=seed_of(3, DATA_STREAM, 1))
    model = build_model("mlp", data.shape, data.num_classes)
    torch.nn.utils.vector_to_parameters(initial_parameters(model, seed_of(3, MODEL_STREAM, 1)), model.parameters())
    slopes = []
    for i in range(3):
        features, labels = held.samples(i, 0)
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(features)), torch.tensor(labels))
        slopes.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).double().numpy())
    whole = np.array(sizes) @ np.array(slopes) / sum(sizes)
    assert found[:, 1] == pytest.approx(np.linalg.norm(np.array(slopes) - whole, axis=1), rel=1e-4)


def test_heterogeneity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPREAD_SETTINGS", "LABEL_SETTINGS"):
        monkeypatch.setitem(getattr(heterogeneity, name), "devices", 8)
        monkeypatch.setitem(getattr(heterogeneity, name), "slots", 8)
    records = run("heterogeneity", tmp_path / "het.json", limit_s=1.0)
    assert len(records) == 6
    for record in records:
        assert sum(record.result["shares"]) == pytest.approx(1.0)
        assert ("training" in record.result) == (record.item["kind"] == "labels")
    instant, horizon = (r.result["shares"] for r in records if r.item["level"] == 1.5)
    # a device of large δ is dear where each upload is charged
    assert instant[3] <= horizon[3]


def test_scale(tmp_path: Path) -> None:
    records = run("scale", tmp_path / "scale.json", limit_s=0.5)
    assert [(r.item["factor"], r.item[r.item["factor"]]) for r in records] == [("devices", 5), ("devices", 10), ("tasks", 1)]
    assert all(r.result["objective"] == pytest.approx(r.result["objective_per_task"] * r.item["tasks"]) for r in records)


def test_bad_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert main(["drift", "--problems", "no_such_problem"]) == 2
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"schema": "schedopt.study/1", "study": "scale", "records": []}))
    assert main(["drift", "-o", str(other)]) == 2
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(InputError, match="not the results of a study"):
        load_records(get_study("drift"), broken)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and "no_such_problem" in said[1] and "must be another file" in said[2]


def test_some_items_alone() -> None:
    study = get_study("misestimation")
    wanted = Options(only=(("margin", "none"), ("share", "0.0"), ("share", "0.2")))
    left = [item for item in study.items(wanted) if wanted.wants(item)]
    assert {(item["margin"], item["share"]) for item in left} == {("none", 0.0), ("none", 0.2)}
    assert all(wanted.wants(item) for item in get_study("drift").items(wanted))


def test_every_study_has_items() -> None:
    for name in STUDIES:
        study = get_study(name)
        short, full = (list(study.items(Options(short=short))) for short in (True, False))
        assert study.name == name and 0 < len(short) < len(full)
