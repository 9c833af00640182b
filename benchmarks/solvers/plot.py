"""Convergence of the variants as a picture; needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.solvers.run import Comparison, Row
from schedopt.errors import InputError

__all__ = ["check_plot", "draw", "save_picture"]


def check_plot() -> None:
    """Raise :class:`~schedopt.errors.InputError` if pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib; pip install 'schedopt[report]'")


def save_picture(path: str, results: Sequence[Comparison]) -> None:
    """Write the picture as PNG, whole or not at all."""
    stream = io.BytesIO()
    draw(results).savefig(stream, format="png", dpi=110)
    unfinished = Path(f"{path}.part")
    unfinished.write_bytes(stream.getvalue())
    unfinished.replace(path)


def draw(results: Sequence[Comparison]) -> Any:
    """A line of panels per problem: merit of the iterate and schedule held, then KKT residual, by iteration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6 * max(len(results), 1)), layout="constrained")
    panels = figure.subplots(max(len(results), 1), 2, squeeze=False)
    names = list(dict.fromkeys(row.variant for result in results for row in result.rows))
    for (left, right), result in zip(panels, results, strict=False):
        for row in result.rows:
            _lines(left, right, row, names.index(row.variant))
        _bounds(left, result)
        left.set(title=result.problem, xlabel="iteration", ylabel="merit of the iterate\n(line), schedule held (steps)")
        right.set(title="KKT residual (after steps on the whole program)", xlabel="iteration", ylabel="scaled residual", yscale="log")
        for axis in (left, right):
            axis.grid(alpha=0.3)
    handles = {handle.get_label(): handle for row in panels for handle in row[0].get_lines() if not handle.get_label().startswith("_")}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8)
    return figure


def _lines(left: Any, right: Any, row: Row, number: int) -> None:
    """One variant; dots mark where a phase begins, and lines that coincide are told apart by their widths."""
    from matplotlib import colormaps

    style = {
        "color": colormaps["tab10"](number % 10),
        "linestyle": "-" if number < 10 else "--",
        "linewidth": max(3.0 - 0.25 * number, 1.0),
    }
    trace = row.trace
    if not trace.phase:
        if trace.objective:
            left.step(range(len(trace.objective)), trace.objective, where="post", label=row.variant, alpha=0.8, **style)
        return
    begins = [k for k, phase in enumerate(trace.phase) if k == 0 or phase != trace.phase[k - 1]]
    left.plot(range(len(trace.merit)), trace.merit, label=row.variant, marker="o", markersize=3.5, markevery=begins, **style)
    # broken where a phase begins: what one phase reaches says nothing of the next
    steps = [(k, value if k not in begins else nan) for k, value in enumerate(trace.residual) if trace.whole[k] or k in begins]
    right.plot([k for k, _ in steps], [value for _, value in steps], label=row.variant, **style)


def _bounds(axis: Any, result: Comparison) -> None:
    """Best schedule and proven bound as horizontal lines; far-off first merits do not set the scale."""
    lines = (("best schedule known", result.best, "-"), ("proven lower bound", result.lower_bound, ":"))
    for label, value, dashes in lines:
        if value is not None:
            axis.axhline(value, color="black", linestyle=dashes, linewidth=0.9, label=label)
    series = [row.trace.merit or row.trace.objective for row in result.rows]
    values = [value for values in series for value in values]
    if values and result.best:
        low = min(*values, *(value for _, value, _ in lines if value is not None))
        # half of the variants begin within the picture
        high = max(median(values[0] for values in series if values), low + 1.1 * (result.best - low))
        axis.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
