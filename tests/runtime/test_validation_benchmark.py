"""The validation study: runs are not repeated, guides are judged as they should be, and a tiny study goes through."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.validation import __main__ as command
from benchmarks.validation import decisions, guides
from benchmarks.validation import ground as grounds
from benchmarks.validation.decisions import AtEnergy, Kept
from benchmarks.validation.ground import Cell, Ground, make_ground
from benchmarks.validation.guides import Cap, caps, decision, judge, of_cells
from benchmarks.validation.plot import save_pictures
from benchmarks.validation.runs import FORMS, features, open_to_add, read_records, record_of
from benchmarks.validation.schedules import FACTORS, OPTIMISED, factor_schedules, judged_by, optimised_schedules, random_schedules
from fl_runtime.calibrate.term_choice import LEAST_RUNS
from fl_runtime.calibrate.term_fit import guide_values
from fl_runtime.datasets import load_dataset
from schedopt.bounds.async_schedule import AsyncScheduleBound
from schedopt.constraints import validate_schedule
from schedopt.objective import evaluate_objective
from schedopt.problem import TERMS, Problem
from schedopt.schedule import Schedule

CELL = Cell("mnist", "softmax", 4.0, "dirichlet:0.3")


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """Digits in place of the data sets that are not everywhere."""
    patch = pytest.MonkeyPatch()
    patch.setattr(grounds, "_dataset", lambda name, accept_incomplete: load_dataset("digits"))
    patch.setattr(grounds, "SAMPLES", 40)
    patch.setattr(grounds, "STRIDE", 5)
    grounds._measured.cache_clear()
    yield patch
    grounds._measured.cache_clear()
    patch.undo()


@pytest.fixture(scope="module")
def ground(small: pytest.MonkeyPatch) -> Ground:
    return make_ground(CELL)


def test_the_regime_is_met(ground: Ground) -> None:
    task = ground.problem.tasks[0]
    assert task.learning_rate * task.smoothness * task.max_steps == pytest.approx(CELL.ratio)
    pair = ground.problem.devices[0].tasks["task"]
    assert pair.dissimilarity > 0 and pair.gradient_variance > 0
    assert make_ground(CELL).problem.digest == ground.problem.digest


def test_schedules_are_feasible_and_vary_one_thing(ground: Ground) -> None:
    problem = ground.problem
    named = [*random_schedules(problem, 6), *factor_schedules(problem)]
    made = {entry.name: entry.make() for entry in named}
    for name, schedule in made.items():
        report = validate_schedule(problem, schedule)
        assert all(check.ok for check in report.checks if check.name[0].isdigit()), name
    assert [made[f"staleness={v}"].staleness.max() for v in FACTORS["staleness"]] == list(FACTORS["staleness"])
    assert [made[f"steps={v}"].steps.max() for v in FACTORS["steps"]] == list(FACTORS["steps"])
    ends = [sorted(zip(made[f"staleness={v}"].device, made[f"staleness={v}"].end, strict=True)) for v in FACTORS["staleness"]]
    assert all(found == ends[0] for found in ends)
    turns = [np.bincount(made[f"turns={v}"].device) for v in FACTORS["turns"]]
    assert all(np.ptp(count) == 0 for count in turns)


def test_another_draw_is_another_ground_and_other_schedules(ground: Ground) -> None:
    other = make_ground(dataclasses.replace(CELL, draw=3))
    assert str(other.cell).endswith(", draw 3") and "draw" not in CELL.to_dict() and Cell(**other.cell.to_dict()) == other.cell
    assert other.problem.digest != ground.problem.digest
    assert [len(x) for x in other.data.samples(0, 0)] != [len(x) for x in ground.data.samples(0, 0)]
    first, again = (next(random_schedules(ground.problem, 1, draw)).make() for draw in (0, 3))
    assert first.digest == next(random_schedules(ground.problem, 1)).make().digest != again.digest


def test_optimised_schedules_use_the_energy_they_may(ground: Ground) -> None:
    energies = np.array([0.05, 0.5])
    named = [entry for entry in optimised_schedules(ground.problem, energies) if entry.name.startswith("start")]
    assert len(named) * len(OPTIMISED) == len(list(optimised_schedules(ground.problem, energies)))
    schedule = named[0].make()
    found = features(ground.problem, schedule)
    assert found["energy_j"] <= np.quantile(energies, 0.1) * (1 + 1e-9)


def test_forms_are_those_of_the_evaluator(ground: Ground) -> None:
    schedule = next(random_schedules(ground.problem, 1)).make()
    found = features(ground.problem, schedule)
    assert set(found["forms"]) == set(FORMS)
    plain = AsyncScheduleBound().evaluate(ground.problem.model_copy(update={"objective": ground.problem.objective}), schedule)
    participation = ground.problem.objective.participation
    same = found["forms"]["horizon 0" if participation == "horizon" else "instant"]
    np.testing.assert_allclose(same["terms"], plain.raw_terms[0])
    assert same["h_total"] == pytest.approx(float(plain.extra["h_total"][0])) == found["h_total"]
    # the m-th of e local steps counts (1 - mu)^m
    weight = ground.problem.arrays.server_weight[schedule.device, 0] * ground.problem.tasks[0].learning_rate
    assert found["forms"]["horizon 0.2"]["h_total"] == pytest.approx(float(weight @ ((1 - 0.8**schedule.steps) / 0.2)))
    assert judged_by(ground.problem, "horizon", 0.2).tasks[0].prox == ground.problem.tasks[0].prox


def test_records_say_what_training_gave(ground: Ground, tmp_path: Path) -> None:
    schedule = next(random_schedules(ground.problem, 1)).make()
    record = record_of(ground, "random-0", schedule, 0)
    assert record["loss"] < record["first_loss"] and not record["diverged"] and record["least_loss"] <= record["loss"]
    again = record_of(ground, "random-0", schedule, 0)
    assert {**again, "seconds": 0} == {**record, "seconds": 0}
    assert record_of(ground, "random-0", schedule, 1)["loss"] != record["loss"]
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps(record)[:50])
    assert [entry["loss"] for entry in read_records(file)] == [record["loss"]]
    with open_to_add(file) as added:
        added.write(json.dumps(again) + "\n")
    assert [entry["loss"] for entry in read_records(file)] == [record["loss"]] * 2
    with open_to_add(tmp_path / "new" / "runs.jsonl") as added:
        added.write(json.dumps(again) + "\n")
    assert len(list(read_records(tmp_path / "new" / "runs.jsonl"))) == 1


def made_up(count: int, loss_of: object, seeds: int = 2) -> list[dict[str, object]]:
    """Records of schedules whose loss is a function of their terms and H."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(count):
        h = float(np.exp(rng.uniform(-1, 1)))
        terms = np.array([2.0, 0, 10 * h * rng.random(), 0, 3e4 * h * rng.random(), 25 * h * rng.random(), 0])
        forms = {form: {"terms": terms.tolist(), "h_total": h} for form in FORMS}
        for seed in range(seeds):
            loss = float(loss_of(terms, h))  # type: ignore[operator]
            outcome = {"loss": loss, "late_loss": loss, "accuracy": -loss, "gradient2": loss, "diverged": False, "least_loss": loss}
            head = {"cell": CELL.to_dict(), "schedule": f"random-{k}", "seed": seed, "seconds": 0.5, "uploads": 10}
            head["assignments"] = [[k, 0, 1, 1, 1]]
            found.append({**head, **outcome, "h_total": h, "energy_j": float(np.exp(rng.uniform(-0.5, 0.5))), "forms": forms})
    return found


def test_guides_are_judged_by_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    multipliers = np.array([1.0, 1, 0.3, 0, 3e-5, 0.04, 0])
    records = made_up(40, lambda terms, h: np.tanh(guide_values(multipliers, terms[None], np.array([h]))[0] / 9))
    monkeypatch.setattr(guides, "FITTED", {"horizon": ("horizon 0",)})
    ((cell, mine),) = of_cells(records).items()
    result = judge(cell, mine)
    assert result is not None and result.schedules == 40 and result.ceiling["loss"] == pytest.approx(1.0)
    rho = {guide: found["loss"] for guide, found in result.correlation.items()}
    assert rho["fit, horizon"] > max(rho["plain 1/H"], rho["theorem"]) and rho["fit, horizon"] > 0.95
    assert result.decision["fit, horizon"].regret <= result.decision["plain 1/H"].regret
    assert judge(cell, mine[:10]) is None
    twice = [*mine, *({**record, "schedule": f"again-{record['schedule']}"} for record in mine[:20])]
    doubled = judge(cell, twice)
    assert doubled is not None and doubled.schedules == 40 and len(doubled.losses) == 50
    assert doubled.correlation == result.correlation


def test_choices_at_equal_energy() -> None:
    loss, energy = np.linspace(1, 2, 10), np.ones(10)
    assert decision(loss, loss, energy).regret == 0 and decision(loss, loss, energy).place == 0
    worst = decision(-loss, loss, energy)
    assert worst.regret == pytest.approx(1.0) and worst.share == pytest.approx(2.0) and worst.place == pytest.approx(0.9)
    assert np.isnan(decision(loss, loss, 10.0 ** np.arange(10)).regret)  # no alternatives
    assert decision(-loss, np.append(loss[:-1], np.inf), energy).regret > 0.9


def test_caps_find_the_limit() -> None:
    value = np.linspace(0, 1, 50)
    records = [{"diverged": v > 0.7, "loss": 1.0, "least_loss": 1.0, **dict.fromkeys(guides.CAPS, 0.5)} | {"beta_h": v} for v in value]
    best = caps(records)[0]
    assert isinstance(best, Cap) and best.quantity == "beta_h" and best.precision == best.recall == 1.0
    assert 0.68 < best.limit <= 0.7
    assert caps([entry | {"diverged": False} for entry in records]) == []


def test_study(small: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forms = {"horizon": ("horizon 0",), "window": ("part 0",), "saturating": ("part 0.2",)}
    monkeypatch.setattr(guides, "FITTED", forms | {"horizon, saturating": ("horizon 0.2",)})
    runs, output, pictures = tmp_path / "new" / "runs.jsonl", tmp_path / "out.json", tmp_path / "pictures"
    chosen = ["--data", "mnist", "--models", "softmax", "--ratios", "4", "--partitions", "iid", "--seeds", "1", "--no-optimised"]
    arguments = [*chosen, "--schedules", "2", "--runs", str(runs), "-o", str(output)]
    code = command.main(arguments)
    data = json.loads(output.read_text())
    assert code == int(bool(data["missed"]))
    assert data["runs"] == 2 + sum(map(len, FACTORS.values())) == len(runs.read_text().splitlines())
    (cell,) = data["cells"]
    assert cell["cell"]["partition"] == "iid" and set(cell["fits"]) == {"horizon", "window", "saturating", "horizon, saturating"}
    assert list(cell["fits"]["window"]["multipliers"])[0] == 1 and len(cell["fits"]["window"]["multipliers"]) == len(TERMS)
    monkeypatch.setattr(command, "record_of", lambda *args: pytest.fail("a run is repeated"))
    assert command.main(arguments) == code
    assert command.main(["--analyse", "--runs", str(runs)]) == code
    assert "one factor at a time" in capsys.readouterr().out
    found = [judge(*entry) for entry in of_cells(read_records(runs)).items()]
    save_pictures(str(pictures), [result for result in found if result is not None])
    assert sorted(path.name for path in pictures.iterdir()) == ["agreement.png", "factors.png", "guides.png"]


def test_kept_values_are_made_once(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    assert [Kept(path).get(["a", 1.5], lambda: [np.float64(2.0)]), Kept(path).get(["a", 1.5], lambda: pytest.fail("again"))] == [[2.0]] * 2
    path.write_text(path.read_text() + '{"key": ["b"], "va')
    kept = Kept(path)
    assert kept.get(["a", 1.5], lambda: 0) == [2.0]
    assert Kept(None).get(["b"], lambda: None) is None


def least_of_random(asked: Problem, start: Schedule | None, limit_s: float) -> Schedule | None:
    """In place of a solver: of some random schedules the one with the least Ψ within the energy."""
    limit = asked.objective.total_energy_j
    assert limit is not None
    made = [(evaluate_objective(asked, schedule), schedule) for schedule in (named.make() for named in random_schedules(asked, 6))]
    return min((pair for pair in made if pair[0].energy_j <= limit), key=lambda pair: pair[0].objective, default=(None, None))[1]


def test_decisions(small: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A calibration and its test, from the command line; what was done is not done again."""
    monkeypatch.setattr(decisions, "optimise", least_of_random)
    file, output = tmp_path / "new" / "kept.jsonl", tmp_path / "out.json"
    chosen = ["--data", "mnist", "--models", "softmax", "--ratios", "4", "--partitions", "iid", "--schedules", "16"]
    arguments = ["--decide", str(file), *chosen, "--test-seeds", "1", "--tournament-runs", str(LEAST_RUNS), "-o", str(output)]
    code = command.main(arguments)
    data = json.loads(output.read_text())
    assert code == int(bool(data["missed"]))
    (cell,) = data["cells"]
    assert len(cell["energies"]) == len(decisions.BUDGETS) and all(len(at["plain"]) == 1 for at in cell["energies"])
    assert cell["guide"]["name"] in {entry["name"] for entry in cell["table"]["contenders"]}
    assert cell["table"]["runs"] <= LEAST_RUNS and -1 <= cell["spearman_plain"] <= 1
    told = capsys.readouterr().out
    assert "tournaments: loss against plain H" in told and told.count("missed: ") == len(data["missed"])
    for name in ("train", "optimise"):
        monkeypatch.setattr(decisions, name, lambda *args, **kw: pytest.fail("done again"))
    assert command.main(arguments) == code
    again = json.loads(output.read_text())["cells"][0]
    assert {**again, "table": 0} == {**cell, "table": 0} and again["table"]["contenders"] == cell["table"]["contenders"]


def test_wins_are_of_seeds() -> None:
    at = AtEnergy(1.0, [1.0, 2.0, 3.0], [0.5, 2.0, 2.5], (1, 1), (1.0, 1.0), (1.0, 1.0))
    assert at.wins == 2


def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--analyse", "--runs", str(tmp_path / "none.jsonl")]) == 2
    assert "must be a file of runs" in capsys.readouterr().err
    for wrong in (["--models", "perceptron"], ["--ratios", "-1"], ["--ratios", "nan"], ["--draw", "-1"]):
        with pytest.raises(SystemExit) as caught:
            command.main(wrong)
        assert caught.value.code == 2
    for text in ('{"a": 1}\n', "5\n"):
        (tmp_path / "other.jsonl").write_text(text)
        assert command.main(["--analyse", "--runs", str(tmp_path / "other.jsonl")]) == 2
        assert "line 1 is no run" in capsys.readouterr().err
        assert command.main(["--decide", str(tmp_path / "other.jsonl")]) == 2
        assert "line 1 is no value that was kept" in capsys.readouterr().err
    assert command.main(["--runs", str(tmp_path)]) == 2 and "must be a file" in capsys.readouterr().err
