"""The READMEs say what is there: commands, Python example, layout, solvers, problems."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from schedopt.cli import main
from schedopt.registry import solver_names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(language: str) -> list[str]:
    """The fenced code blocks of ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text under the heading ``title``."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def table_rows(text: str) -> list[list[str]]:
    """Cells of the rows of the tables in ``text``, without head and rule."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for k, row in enumerate(rows) if not set("".join(row)) <= set("-: ") and not _is_head(rows, k)]


def _is_head(rows: list[list[str]], k: int) -> bool:
    return k + 1 < len(rows) and set("".join(rows[k + 1])) <= set("-: ")


#: Our own commands and those that the runtime attaches.
COMMANDS = main.list_commands(click.Context(main))  # type: ignore[attr-defined]

LINES = [line for block in blocks("bash") for line in block.splitlines() if line]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    assert re.search(rf"^{re.escape(line.split()[1])}:", MAKEFILE, flags=re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("schedopt ")])
def test_commands_and_their_options_exist(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    assert name in COMMANDS
    help_text = CliRunner().invoke(main, [name, "--help"]).output
    for argument in arguments:
        if argument.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(argument)}(?![\w-])", help_text), argument
        elif argument.startswith("problems/"):
            assert (ROOT / argument).is_file()


def test_make_clean_removes_what_make_demo_writes() -> None:
    written = re.findall(r" -o (\S+)", MAKEFILE.split("\ndemo:", 1)[1].split("\n\n", 1)[0])
    removed = MAKEFILE.split("\nclean:", 1)[1].split("\n\n", 1)[0].split()
    assert written and [path for path in written if not any(fnmatch.fnmatch(path, pattern) for pattern in removed)] == []


def test_every_line_of_shell_is_known() -> None:
    assert [line for line in LINES if not line.startswith(("make ", "schedopt "))] == [". .venv/bin/activate"]


def test_what_the_commands_write_is_ignored() -> None:
    """Following the README leaves nothing for git to report."""
    written = set(re.findall(r"(?:schedopt|python) .* (?:-o|--events) (\S+)", "\n".join([*LINES, MAKEFILE])))
    assert {"schedule.json", "schedule.json.gz", "problem.json", "out.json", "report.json", "quickstart.json"} <= written
    ignored = set((ROOT / ".gitignore").read_text().split())
    missing = {path for path in written if not any(f"/{path}".startswith(entry) for entry in ignored if entry.startswith("/"))}
    assert missing == set()


def test_command_table_is_complete() -> None:
    named = {re.match(r"`schedopt (\w+)", row[0]).group(1) for row in table_rows(section("Command line"))}  # type: ignore[union-attr]
    assert named == set(COMMANDS)


def test_python_example_runs() -> None:
    (code,) = blocks("python")  # at the left margin; the example of a data set is inside a list
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "mnist: bound" in done.stdout


def test_data_set_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl_runtime.datasets import load_dataset, registry

    monkeypatch.setattr(registry, "_registered", {})
    (code,) = re.findall(r"^  ```python\n(.*?)^  ```", README, flags=re.MULTILINE | re.DOTALL)
    np.savez(tmp_path / "mine.npz", x=np.eye(3), y=[0, 1, 2], x_test=np.eye(3), y_test=[0, 1, 2])
    exec(textwrap.dedent(code), {})
    assert load_dataset("mine", data_dir=tmp_path).num_classes == 3


def test_options_of_simulate_exist() -> None:
    help_text = CliRunner().invoke(main, ["simulate", "--help"]).output
    named = set(re.findall(r"`(--[\w-]+)", section("Training by a schedule")))
    assert {"--partition", "--drift", "--resume", "--path"} <= named
    assert [option for option in named if option not in help_text] == []


def test_solver_table_matches_the_registry() -> None:
    assert [row[0].strip("`") for row in table_rows(section("Solvers"))] == solver_names()


def test_layout_table_matches_the_tree() -> None:
    listed = [path for row in table_rows(section("Layout")) for path in re.findall(r"`([^`]+)`", row[0])]
    assert len(listed) == len(set(listed))
    assert [path for path in listed if not (ROOT / path).exists()] == []
    mentioned = {path for row in table_rows(section("Layout")) for cell in row for path in re.findall(r"`([^`]+)`", cell)}
    for package in ("schedopt", "fl_runtime"):
        modules = {f"{package}/{path.name}" for path in (ROOT / package).glob("*.py") if not path.name.startswith("__")}
        packages = {f"{package}/{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
        assert (modules | packages) - mentioned == set()


def test_paths_in_the_text_exist() -> None:
    for folder, text in ((ROOT, README), (ROOT, (ROOT / "problems" / "README.md").read_text())):
        paths = re.findall(r"`((?:schedopt|tests|problems|benchmarks|fl_runtime)/[\w./]*)`", text)
        assert [path for path in paths if not (folder / path).exists()] == []


def test_every_problem_has_a_row_and_every_row_a_problem() -> None:
    text = (ROOT / "problems" / "README.md").read_text().split("\n## ", 1)[0]
    rows = {row[0].strip("`"): row for row in table_rows(text)}
    assert set(rows) == {path.stem for path in (ROOT / "problems").glob("*.json")}


def test_problem_rows_state_the_sizes() -> None:
    from schedopt.io import load_problem

    text = (ROOT / "problems" / "README.md").read_text().split("\n## ", 1)[0]
    for row in table_rows(text):
        problem = load_problem(ROOT / "problems" / f"{row[0].strip('`')}.json")
        sizes = (len(problem.devices), len(problem.tasks), problem.horizon.slots)
        assert tuple(int(cell) for cell in row[1:4]) == sizes, row[0]
