"""The help of verbs as text, for docs/cli.md."""

from __future__ import annotations

from typing import Any

from checkpoint_cli.app import load, program
from checkpoint_cli.verbs import Door, Verb


def page(door: Door, verb: Verb) -> str:
    """Return what `<verb> --help` prints, for a width of 100 columns."""
    group: Any = program(door)
    command: Any = load(door, verb)
    parent = group.context_class(group, info_name=door.value, terminal_width=100)
    context = command.context_class(
        command, info_name=verb.name, parent=parent, terminal_width=100, **command.context_settings
    )
    return str(command.get_help(context)).strip()
