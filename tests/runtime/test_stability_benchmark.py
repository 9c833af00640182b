"""The stability benchmark: its server rates put S2 where they should, and it trains for real."""

from __future__ import annotations

import json

import pytest

from benchmarks.stability import VALUES, at_value, deliver, measure, pipeline
from benchmarks.validation.ground import Cell, make_ground
from schedopt.bounds.stability import stability_conditions
from schedopt.constraints import validate_schedule

CELL = Cell("digits", "softmax", 0.6, "dirichlet:0.3")


@pytest.mark.parametrize("kappa", [0, 2, 5])
def test_the_left_side_of_s2_is_what_was_asked_for(kappa: int) -> None:
    ground = make_ground(CELL)
    schedule = pipeline(ground.problem, kappa)
    assert set(schedule.staleness) == {kappa} and len(set(schedule.device)) == 10
    assert not [c.name for c in validate_schedule(ground.problem, schedule).checks if not c.ok and c.name.startswith(("1", "2", "3"))]
    for value in (VALUES[0], VALUES[-1]):
        found = stability_conditions(at_value(ground, schedule, value).problem.arrays, schedule)[1].value[0]
        assert found == pytest.approx(value, rel=1e-9)


def test_a_run_far_beyond_the_limit_is_lost_and_one_within_it_learns(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [measure(CELL, 5, value, 0) for value in (1.0, 500.0)]
    assert not runs[0]["lost"] and runs[0]["loss"] < runs[0]["first_loss"]
    assert runs[1]["lost"]
    text, missed = deliver(runs, False)
    assert not missed and json.loads(text)["runs"][0]["staleness"] == 5
    assert "S2 holds: 0 of 1 runs lost; S2 fails: 1 of 1" in capsys.readouterr().out
