"""Imports run one way, optional and heavy packages stay where they belong, and the command line starts without them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import schedopt

ROOT = Path(schedopt.__file__).parent

#: From the ground up: a module may import what lies below it, and its own package. A package stands for all its modules.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("jsontext",),
    ("messages",),
    ("problem",),
    ("schedule",),
    ("result", "physics"),
    ("bounds",),
    ("objective",),
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
    ("io", "schemas"),
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


def part_of(module: str) -> str:
    """``schedopt.sca.loop`` -> ``sca``."""
    return module.split(".")[1]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> dict[str, ast.Module]:
    """Every module's syntax tree, by name."""
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs: all nodes, inside functions too, but what type checkers alone see."""
    for child in ast.iter_child_nodes(node):
        if not is_for_types_only(child):
            yield child
            yield from statements(child)


@cache
def imports(module: str) -> set[str]:
    """Names of the modules that ``module`` imports anywhere; ``from package import x`` counts as ``package.x`` where that is one."""
    found = set()
    for node in statements(trees()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module}: relative import"
            deeper = {f"{node.module}.{alias.name}" for alias in node.names} & trees().keys()
            found |= deeper or {node.module}
    return found


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name in trees() and name not in (module, "schedopt")}


MODULES = sorted(name for name in trees() if name != "schedopt")
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


def test_every_module_has_a_layer_and_every_layer_a_module() -> None:
    assert {part_of(module) for module in MODULES} == RANK.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for other in own_imports(module):
        if part_of(other) != part_of(module):
            assert RANK[part_of(other)] < RANK[part_of(module)], f"{module} imports {other}, which does not lie below it"


def test_there_is_no_import_cycle() -> None:
    """Not within a package either, and not by imports inside functions."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in own_imports(module):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


@pytest.mark.parametrize("package", HOMES)
def test_packages_stay_at_home(package: str) -> None:
    users = {module for module in trees() if any(name.split(".")[0] == package for name in imports(module))}
    users -= {module for module, excepted in EXCEPTIONS if excepted == package}
    assert {module for module in users if module == "schedopt" or part_of(module) not in HOMES[package]} == set()


def test_the_homes_are_lived_in() -> None:
    """The check finds what it looks for: cvxpy in sca, click in cli, files in io."""
    used = {name.split(".")[0] for module in trees() for name in imports(module)}
    assert {"cvxpy", "click", "rich", "mosek", "os", "pathlib", "gzip"} <= used


def file_calls(module: str) -> set[str]:
    names = set()
    for node in statements(trees()[module]):
        if isinstance(node, ast.Call):
            function = node.func
            names.add(function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else "")
    return names & FILE_CALLS


def test_only_io_and_the_command_line_open_files() -> None:
    assert {module: file_calls(module) for module in MODULES if part_of(module) not in ("io", "cli") and file_calls(module)} == {}
    assert "open" in file_calls("schedopt.io")


def test_nothing_at_the_top_of_the_package_is_imported() -> None:
    """``schedopt/__init__.py`` names its exports and imports them on first use."""
    assert not any(name.startswith("schedopt") for name in imports("schedopt"))
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
