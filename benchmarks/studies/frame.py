"""What all studies share: a list of items that are measured one by one and kept, tables and a picture of what was found.

A study is a set of functions. ``items`` lists what is to be measured, each item a dict of plain values that says all that its result
depends on; ``measure`` does one; ``tables`` and ``draw`` show the records so far. Results are kept after every item, so that a study that
was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.output import machine, versions
from schedopt.errors import InputError
from schedopt.io import write_text
from schedopt.jsontext import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Options", "Record", "Study", "Table", "load_records", "results_of", "run_items", "show"]

SCHEMA = "schedopt.study/1"
#: columns of the tables where standard output is not a terminal
WIDTH = 160

Item = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the command line says: a short run, number of seeds, seconds of a solve, problems by name (empty = the study's own).

    ``only``: names and values of fields; of items with such a field, those with one of its values are measured (empty = all).
    """

    short: bool = False
    seeds: int | None = None
    time_limit_s: float | None = None
    problems: tuple[str, ...] = ()
    only: tuple[tuple[str, str], ...] = ()

    def wants(self, item: Item) -> bool:
        """Whether ``only`` lets the item through."""
        return all(str(item[name]) in {value for key, value in self.only if key == name} for name, _ in self.only if name in item)


@dataclass(frozen=True)
class Record:
    """An item and what was measured."""

    item: Item
    result: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table: numbers are shown with four digits, None as a dash; ``note`` explains it."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str | float | int | None]]
    note: str = ""


@dataclass(frozen=True)
class Study:
    """See the module; ``question`` is one line, ``panels`` (columns, rows) of the picture."""

    name: str
    question: str
    items: Callable[[Options], Iterable[Item]]
    measure: Callable[[Item], dict[str, Any]]
    tables: Callable[[Sequence[Record]], list[Table]]
    draw: Callable[[Sequence[Record], Figure], None]


def _key(item: Mapping[str, Any]) -> str:
    return json.dumps(item, sort_keys=True)


def load_records(study: Study, path: str | Path | None) -> list[Record]:
    """What an earlier run left in ``path``. Raises :class:`~schedopt.errors.InputError` for a file that is not of this study."""
    if path is None or not Path(path).exists():
        return []
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        ours = data["schema"] == SCHEMA and data["study"] == study.name
        records = [Record(entry["item"], entry["result"]) for entry in data["records"]] if ours else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the results of a study ({error})") from error
    if records is None:
        raise InputError(f"{path}: not the results of the study {study.name}; must be another file")
    return records


def run_items(
    study: Study, options: Options, path: str | Path | None, *, tell: Callable[[str], None] = lambda line: None
) -> tuple[list[Record], bool]:
    """Measure what is not yet in ``path`` and keep it there; the records of this run's items, and whether Ctrl-C ended it."""
    known = {_key(record.item): record for record in load_records(study, path)}
    items = [item for item in study.items(options) if options.wants(item)]
    try:
        for number, item in enumerate(items):
            if _key(item) in known:
                continue
            tell(f"{study.name} {number + 1}/{len(items)}: " + ", ".join(f"{k} {v}" for k, v in item.items() if k != "digest"))
            known[_key(item)] = Record(item, plain(study.measure(item)))
            if path is not None:
                write_text(path, results_of(study, list(known.values())))
    except KeyboardInterrupt:
        return [known[_key(item)] for item in items if _key(item) in known], True
    return [known[_key(item)] for item in items], False


def results_of(study: Study, records: Sequence[Record]) -> str:
    """The results as JSON text."""
    data = {
        "schema": SCHEMA,
        "study": study.name,
        "question": study.question,
        "versions": versions(),
        "machine": machine(),
        "records": [asdict(record) for record in records],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def show(study: Study, records: Sequence[Record], *, picture: str | Path | None = None, console: Console | None = None) -> None:
    """Tables on standard output, and the picture."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for table in study.tables(records):
        console.print(_rich(table), highlight=False)
        if table.note:
            console.print(table.note, highlight=False, markup=False)
    if picture is not None:
        _save_picture(study, records, Path(picture))


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left")
    for k, name in enumerate(table.head):
        shown.add_column(name, justify="left" if k == 0 else "right")
    for row in table.rows:
        shown.add_row(*(_cell(value) for value in row))
    return shown


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _save_picture(study: Study, records: Sequence[Record], path: Path) -> None:
    from matplotlib.figure import Figure

    if not records:
        return  # axes without lines
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    study.draw(records, figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
