"""``schedopt doctor``: what is usable here, and how to get the rest.

Other packages add sections by an entry point in the group ``schedopt.doctor``: its name is the section's title, its value names a function
of the folder given as ``--data-dir`` (or None) that returns a list of :class:`Finding`.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec

import click

from schedopt import __version__
from schedopt.cli.options import json_option
from schedopt.cli.output import Command, Screen, print_json
from schedopt.errors import SolverError

__all__ = ["Finding", "command"]

ENTRY_POINT_GROUP = "schedopt.doctor"

#: What schedopt cannot do without.
REQUIRED = ("numpy", "scipy", "cvxpy", "highspy", "pydantic", "click", "rich")


@dataclass(frozen=True)
class Optional:
    """A package that is not required: how it is imported and installed, and what it is for."""

    module: str
    package: str
    extra: str
    purpose: str


OPTIONAL = (
    Optional("torch", "torch", "runtime", "training by a schedule (simulate)"),
    Optional("sklearn", "scikit-learn", "runtime", "the data sets digits, breast-cancer and wine"),
    Optional("pooch", "pooch", "runtime", "download of data sets"),
    Optional("pyscipopt", "pyscipopt", "scip", "the general global solver SCIP"),
    Optional("matplotlib", "matplotlib", "report", "pictures"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` says how to get what is not usable."""

    name: str
    usable: bool
    detail: str
    remedy: str | None = None


@click.command("doctor", cls=Command, short_help="Tell what is usable here, and how to get the rest.")
@click.option("--data-dir", type=click.Path(), metavar="DIR", help="Where data sets are, besides SCHEDOPT_DATA_DIR and the cache.")
@json_option
def command(data_dir: str | None, as_json: bool) -> None:
    """Tell which solvers, licences, packages, devices and data sets are usable here, and how to get the rest."""
    sections = {
        "required": [_required(name) for name in REQUIRED],
        "backends": _backends(),
        "optional": [_optional(entry) for entry in OPTIONAL],
        "devices": _devices(),
    }
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        sections.setdefault(entry.name, []).extend(_attached(entry, data_dir))
    if as_json:
        found = {title: [asdict(finding) for finding in findings] for title, findings in sections.items()}
        print_json({"schedopt": __version__, "python": platform.python_version(), "platform": platform.platform(), **found})
    else:
        _print_sections(sections)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _required(name: str) -> Finding:
    found = _version(name)
    return Finding(name, found is not None, found or "not installed", None if found else "pip install schedopt")


def _backends() -> list[Finding]:
    """Installed is not licensed: MOSEK is only usable if it solves something."""
    from schedopt.sca.conic import BACKENDS, check_backend

    findings = []
    for name in BACKENDS:
        found = _version(name)
        try:
            check_backend(name)
        except SolverError as error:
            findings.append(Finding(name, False, f"{found} installed, not usable" if found else "not installed", str(error)))
        else:
            findings.append(Finding(name, True, found or "installed"))
    return findings


def _optional(entry: Optional) -> Finding:
    if find_spec(entry.module) is None:
        return Finding(entry.package, False, f"not installed; for {entry.purpose}", f"pip install 'schedopt[{entry.extra}]'")
    return Finding(entry.package, True, f"{_version(entry.package) or 'installed'}; for {entry.purpose}")


def _devices() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [Finding("cpu", True, f"{cores} cores, {platform.machine()}")]
    if find_spec("torch") is None:
        return [*findings, Finding("cuda", False, "torch is not installed", "pip install 'schedopt[runtime]'")]
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that torch needs is missing or broken
        return [*findings, Finding("cuda", False, f"torch cannot be imported: {error}", "reinstall torch")]
    if not torch.cuda.is_available():
        return [*findings, Finding("cuda", False, f"torch {torch.__version__} sees no CUDA device", "training runs on the CPU")]
    names = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    return [*findings, Finding("cuda", True, names)]


def _attached(entry: EntryPoint, data_dir: str | None) -> list[Finding]:
    """What another package finds; that it cannot be imported is a finding too."""
    try:
        found: list[Finding] = entry.load()(data_dir)
    except ImportError as error:
        return [Finding(entry.name, False, f"{entry.value} cannot be loaded: {error}", "pip install 'schedopt[runtime]'")]
    return found


def _print_sections(sections: dict[str, list[Finding]]) -> None:
    screen = Screen()
    screen.line(f"schedopt {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for title, findings in sections.items():
        screen.line()
        screen.line(f"{title.replace('_', ' ')}")
        width = max((len(finding.name) for finding in findings), default=0) + 2
        for finding in findings:
            _print_finding(screen, finding, width)


def _print_finding(screen: Screen, finding: Finding, width: int) -> None:
    screen.line(f"  {'ok' if finding.usable else 'no'}  {finding.name:<{width}}{finding.detail}")
    if finding.remedy:
        screen.line(f"      {'':<{width}}-> {finding.remedy}")
