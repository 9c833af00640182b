"""Pace: tries all, settles on the fastest, looks again, copes with a way that goes."""

from __future__ import annotations

from fl_runtime.training.pace import AGAIN, Pace


def _use(pace: Pace, seconds: dict[str, float], calls: int) -> list[str]:
    used = []
    for _ in range(calls):
        way = pace.choose()
        pace.record(way, 10.0, seconds[way])
        used.append(way)
    return used


def test_settles_on_the_fastest() -> None:
    pace = Pace(("a", "b"))
    used = _use(pace, {"a": 0.02, "b": 0.01}, 26)
    assert sorted(used[:6]) == ["a"] * 3 + ["b"] * 3
    assert used[6:] == ["b"] * 20
    assert abs(pace.seconds - (3 * 0.02 + 23 * 0.01)) < 1e-12


def test_a_slow_call_is_enough_to_know_a_way_by() -> None:
    assert _use(Pace(("a", "b")), {"a": 5.0, "b": 4.0}, 4) == ["a", "b", "b", "b"]


def test_looks_again_when_neighbours_may_have_gone() -> None:
    pace = Pace(("a", "b"))
    _use(pace, {"a": 0.02, "b": 0.01}, 6)
    later = _use(pace, {"a": 0.001, "b": 0.01}, 4 * AGAIN)
    assert later.count("a") > 2 * AGAIN
    assert later[-9:].count("a") >= 8


def test_a_way_that_joins_is_tried_and_may_go() -> None:
    pace = Pace(("a",))
    _use(pace, {"a": 0.01}, 5)
    pace.add("b")
    assert _use(pace, {"a": 0.01, "b": 0.005}, 5) == ["b"] * 5
    pace.drop("b")
    assert pace.ways == ("a",) and pace.choose() == "a"
