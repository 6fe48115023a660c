"""``completion``: the script that a shell sources."""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.output import write

KUBECTL = """\
#!/bin/sh
# Completes `kubectl ckpt`: kubectl calls this as kubectl_complete-ckpt with the words after "ckpt".
COMP_WORDS="kubectl-ckpt $*" COMP_CWORD=$# _KUBECTL_CKPT_COMPLETE=complete_bash kubectl-ckpt
# No file names.
echo :4
"""


def command(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish; for kubectl ckpt also kubectl.")],
) -> None:
    """Print the completion script of a shell.

    kubectl completes its plugins through a program on the PATH: let `kubectl ckpt completion kubectl` write it to
    kubectl_complete-ckpt, and make that executable.

    Example: {program} completion bash > ~/.local/share/bash-completion/completions/checkpoint
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    parent = context.parent
    name = "kubectl-ckpt" if parent is not None and parent.info_name == "kubectl ckpt" else "checkpoint"
    if shell == "kubectl" and name == "kubectl-ckpt":
        write(KUBECTL.rstrip())
        return
    if shell not in ("bash", "zsh", "fish"):
        raise typer.BadParameter(f"{shell!r} is not bash, zsh or fish.")
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    write(get_completion_script(prog_name=name, complete_var=variable, shell=shell))
