"""Which module of a package imports which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

__all__ = ["ImportGraph", "part_of", "statements"]


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs: all nodes, inside functions too, but what type checkers alone see."""
    for child in ast.iter_child_nodes(node):
        if not _is_for_types_only(child):
            yield child
            yield from statements(child)


class ImportGraph:
    """The modules of the package whose ``__init__.py`` is ``init``."""

    def __init__(self, init: str) -> None:
        self.root = Path(init).parent
        self.package = self.root.name
        self._imports: dict[str, set[str]] = {}

    def _name_of(self, path: Path) -> str:
        parts = path.relative_to(self.root.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Every module's syntax tree, by name."""
        return {self._name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(self.root.rglob("*.py"))}

    @property
    def modules(self) -> list[str]:
        """All modules but the package itself."""
        return sorted(name for name in self.trees if name != self.package)

    def imports(self, module: str) -> set[str]:
        """Names of the modules that ``module`` imports anywhere; ``from package import x`` counts as ``package.x`` where that is one."""
        if module not in self._imports:
            self._imports[module] = self._read(module)
        return self._imports[module]

    def _read(self, module: str) -> set[str]:
        found = set()
        for node in statements(self.trees[module]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module is not None, f"{module}: relative import"
                deeper = {f"{node.module}.{alias.name}" for alias in node.names} & self.trees.keys()
                found |= deeper or {node.module}
        return found

    def own_imports(self, module: str) -> set[str]:
        """Of the same package."""
        return {name for name in self.imports(module) if name in self.trees and name not in (module, self.package)}

    def check_layers(self, module: str, rank: dict[str, int]) -> None:
        """``module`` imports only what lies below it, and its own part."""
        for other in self.own_imports(module):
            if part_of(other) != part_of(module):
                assert rank[part_of(other)] < rank[part_of(module)], f"{module} imports {other}, which does not lie below it"

    def check_no_cycle(self) -> None:
        """Not within a part either, and not by imports inside functions."""
        done: set[str] = set()

        def visit(module: str, path: tuple[str, ...]) -> None:
            assert module not in path, " -> ".join((*path, module))
            if module not in done:
                for other in self.own_imports(module):
                    visit(other, (*path, module))
                done.add(module)

        for module in self.modules:
            visit(module, ())
        assert done == set(self.modules)


def part_of(module: str) -> str:
    """``schedopt.sca.loop`` -> ``sca``."""
    return module.split(".")[1]
