"""Imports run one way, optional and heavy packages stay where they belong, and the command line starts without them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

import schedopt
from tests.import_graph import ImportGraph, part_of, statements

#: From the ground up: a module may import what lies below it, and its own package. A package stands for all its modules.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("jsontext", "windows"),
    ("messages",),
    ("problem",),
    ("schedule",),
    ("result", "physics"),
    ("bounds",),
    ("conditions", "objective", "participation", "staleness"),
    ("constraints",),
    ("formulation",),
    ("feasibility",),
    ("sca",),
    ("state",),
    ("cuts", "milp", "polish", "repair", "rounding"),
    ("ratio_search",),
    ("proof",),
    ("certify", "colgen"),
    ("solvers",),
    ("files", "generate"),
    ("io", "robust", "schemas"),
    ("registry",),
    ("cli",),
    ("__main__",),
)

#: package -> the only parts of schedopt that may import it
HOMES: dict[str, tuple[str, ...]] = {
    "cvxpy": ("sca",),
    "clarabel": ("sca",),
    "ecos": ("sca",),
    "mosek": ("sca",),
    "scs": ("sca",),
    "highspy": ("milp", "proof"),
    "ray": ("colgen",),
    "click": ("cli",),
    "rich": ("cli",),
    # files are opened at the edge alone
    "os": ("io", "cli"),
    "pathlib": ("io", "cli"),
    "gzip": ("io", "cli"),
    "io": ("io", "cli"),
    "tempfile": ("io", "cli"),
    "shutil": ("io", "cli"),
    # the scheduler knows nothing of the runtime
    "fl_runtime": (),
    "torch": (),
    "sklearn": (),
    "matplotlib": (),
}

#: The one exception: doctor tells whether torch is broken and whether it sees a GPU, when asked.
EXCEPTIONS = {("schedopt.cli.doctor", "torch")}

#: Calls that open or change files, by the name of what is called.
FILE_CALLS = {"open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "mkdir", "unlink", "rename"}
FILE_CALLS |= {"memmap", "fromfile", "tofile", "savez", "loadtxt", "savetxt"}


GRAPH = ImportGraph(schedopt.__file__)
MODULES = GRAPH.modules
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


def test_every_module_has_a_layer_and_every_layer_a_module() -> None:
    assert {part_of(module) for module in MODULES} == RANK.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    GRAPH.check_layers(module, RANK)


def test_there_is_no_import_cycle() -> None:
    GRAPH.check_no_cycle()


@pytest.mark.parametrize("package", HOMES)
def test_packages_stay_at_home(package: str) -> None:
    users = {module for module in GRAPH.trees if any(name.split(".")[0] == package for name in GRAPH.imports(module))}
    users -= {module for module, excepted in EXCEPTIONS if excepted == package}
    assert {module for module in users if module == "schedopt" or part_of(module) not in HOMES[package]} == set()


def test_the_homes_are_lived_in() -> None:
    """The check finds what it looks for: cvxpy in sca, click in cli, files in io."""
    used = {name.split(".")[0] for module in GRAPH.trees for name in GRAPH.imports(module)}
    assert {"cvxpy", "click", "rich", "mosek", "os", "pathlib", "gzip"} <= used


def file_calls(module: str) -> set[str]:
    names = set()
    for node in statements(GRAPH.trees[module]):
        if isinstance(node, ast.Call):
            function = node.func
            names.add(function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else "")
    return names & FILE_CALLS


def test_only_io_and_the_command_line_open_files() -> None:
    assert {module: file_calls(module) for module in MODULES if part_of(module) not in ("io", "cli") and file_calls(module)} == {}
    assert "open" in file_calls("schedopt.io")


def test_nothing_at_the_top_of_the_package_is_imported() -> None:
    """``schedopt/__init__.py`` names its exports and imports them on first use."""
    assert not any(name.startswith("schedopt") for name in GRAPH.imports("schedopt"))
    for name in schedopt.__all__:
        assert getattr(schedopt, name) is not None
    assert set(dir(schedopt)) == set(schedopt.__all__)


def loaded_after(code: str) -> set[str]:
    """Top-level packages in memory after ``code`` has run in a new interpreter."""
    tail = "import json, sys; sys.stderr.write(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


HELP = "from schedopt.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
HEAVY = {"numpy", "scipy", "cvxpy", "pydantic", "clarabel", "torch", "rich"}


@pytest.mark.parametrize(
    ("code", "kept_out"),
    [
        ("import schedopt", HEAVY | {"click"}),
        ("import schedopt\nassert schedopt.__version__", HEAVY | {"click"}),
        (HELP, HEAVY),
        ("from schedopt.registry import solver_names\nassert solver_names()", HEAVY | {"click"}),
    ],
)
def test_starts_without_the_heavy_packages(code: str, kept_out: set[str]) -> None:
    loaded = loaded_after(code)
    assert "schedopt" in loaded
    assert loaded & kept_out == set()


def test_reading_and_validating_needs_no_conic_solver() -> None:
    """Nor do the heuristics: cvxpy is loaded by what solves conic programs."""
    code = "import schedopt as s\ns.load_problem, s.evaluate_objective, s.validate_schedule, s.Schedule"
    assert loaded_after(code) & {"cvxpy", "clarabel", "torch", "click"} == set()
    code = "from schedopt.registry import get_solver\nget_solver('greedy_energy')"
    assert loaded_after(code) & {"cvxpy", "torch", "click"} == set()
