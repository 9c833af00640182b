"""``schedopt schema``: the JSON Schema of a file."""

from __future__ import annotations

import click

from schedopt.cli.options import json_option
from schedopt.cli.output import Command, print_json

__all__ = ["command"]


@click.command("schema", cls=Command, short_help="Print the JSON Schema of a file.")
@click.argument("kind", metavar="KIND", type=click.Choice(["problem", "schedule"]))
@json_option
def command(kind: str, as_json: bool) -> None:
    """Print the JSON Schema (draft 2020-12) of a file; KIND is "problem" or "schedule", --json changes nothing."""
    from schedopt.schemas import json_schema

    print_json(json_schema(kind))
