"""What was found, as pictures; needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.validation.guides import CellResult
from benchmarks.validation.schedules import FACTORS
from schedopt.errors import InputError
from schedopt.io import write_bytes

__all__ = ["check_plot", "draw_agreement", "draw_factors", "draw_guides", "save_pictures"]

GUIDES = ("theorem", "plain 1/H", "start", "start, saturating", "fit, horizon", "fit, horizon, saturating")


def check_plot() -> None:
    """Raise :class:`~schedopt.errors.InputError` if pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib; pip install 'schedopt[report]'")


def save_pictures(folder: str, results: Sequence[CellResult]) -> None:
    """Write guides.png, agreement.png and factors.png into ``folder``."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, draw in (("guides", draw_guides), ("agreement", draw_agreement), ("factors", draw_factors)):
        stream = io.BytesIO()
        draw(results).savefig(stream, format="png", dpi=100)
        write_bytes(Path(folder) / f"{name}.png", stream.getvalue())


def draw_guides(results: Sequence[CellResult]) -> Any:
    """Guide and final loss of every schedule: a line of panels per cell."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(GUIDES), 2.5 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), len(GUIDES), squeeze=False)
    for line, result in zip(panels, results, strict=True):
        finite = np.isfinite(result.loss)
        random = np.array([name.startswith("random") for name in result.names])
        for axis, guide in zip(line, GUIDES, strict=True):
            for chosen, colour, label in ((random, "tab:blue", "random"), (~random, "tab:orange", "made")):
                rows = finite & chosen
                axis.plot(result.guides[guide][rows], result.loss[rows], ".", color=colour, markersize=4, label=label)
            axis.set(xscale="linear" if guide.startswith("fit") else "log", title=f"{guide}: {result.correlation[guide]['loss']:.3f}")
            axis.title.set_fontsize(9)
            axis.tick_params(axis="x", which="minor", labelbottom=False)
            axis.grid(alpha=0.3)
        line[0].set_ylabel(str(result.cell).replace(", ", "\n"), fontsize=7)
    panels[0][0].legend(fontsize=7)
    return figure


def draw_agreement(results: Sequence[CellResult]) -> Any:
    """Rank correlation with the final loss, and what choices at equal energy lose, by regime; a line per model and partition."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(result.cell.model for result in results))
    figure = Figure(figsize=(4.6 * len(models), 6.4), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False)
    for column, model in enumerate(models):
        mine = [result for result in results if result.cell.model == model]
        ratios = sorted({result.cell.ratio for result in mine})
        for number, guide in enumerate(GUIDES):
            style = {"color": colormaps["tab10"](number), "marker": "o", "markersize": 4}
            for axis, value in ((panels[0][column], _correlation), (panels[1][column], _share)):
                means = [np.nanmean([value(r, guide) for r in mine if r.cell.ratio == ratio]) for ratio in ratios]
                axis.plot(ratios, means, label=guide, **style)
        if all(result.seeds > 1 for result in mine):
            ceiling = [np.mean([r.ceiling["loss"] for r in mine if r.cell.ratio == ratio]) for ratio in ratios]
            panels[0][column].plot(ratios, ceiling, "k:", label="two seeds")
        # the theorem is far below in all but weak regimes
        panels[0][column].set(title=model, xscale="log", ylabel="rank correlation with the final loss", ylim=(0.6, 1.01))
        panels[1][column].set(xscale="log", xlabel="eta beta e", ylabel="share of a mean choice's loss", ylim=(0, 1.5))
        for axis in panels[:, column]:
            axis.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    return figure


def _correlation(result: CellResult, guide: str) -> float:
    return result.correlation[guide]["loss"]


def _share(result: CellResult, guide: str) -> float:
    return result.decision[guide].share


def draw_factors(results: Sequence[CellResult]) -> Any:
    """Final loss when one thing varies: a panel per factor, a line per cell."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * 3, 3.4 * 2 + 0.16 * len(results)), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    for axis, (factor, levels) in zip(panels, FACTORS.items(), strict=True):
        for number, result in enumerate(results):
            values = [result.losses.get(f"{factor}={level}", float("nan")) for level in levels]
            colour = colormaps["viridis"](number / max(len(results) - 1, 1))
            axis.plot(levels, values, marker="o", markersize=3, color=colour, label=str(result.cell))
        axis.set(title=factor, ylabel="final loss", xscale="log" if min(levels) > 0 else "linear")
        axis.set_xticks(levels, [str(level) for level in levels])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=7, ncols=2)
    return figure
