"""``completion``: the script that a shell sources."""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.output import write


def command(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")],
) -> None:
    """Print the completion script of a shell.

    Example: {program} completion bash > ~/.local/share/bash-completion/completions/checkpoint
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in ("bash", "zsh", "fish"):
        raise typer.BadParameter(f"{shell!r} is not bash, zsh or fish.")
    parent = context.parent
    name = "kubectl-ckpt" if parent is not None and parent.info_name == "kubectl ckpt" else "checkpoint"
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    write(get_completion_script(prog_name=name, complete_var=variable, shell=shell))
