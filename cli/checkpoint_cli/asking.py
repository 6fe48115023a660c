"""Questions before a change that is hard to undo, asked only where there is a terminal to answer them."""

from __future__ import annotations

import sys

from checkpoint_cli.exits import CommandRefusedError, ExitStatus


def confirm(operation: str, subject: str, effect: str, *, yes: bool) -> None:
    """Return if the user agrees.

    Args:
        effect: What will happen, as a sentence without its period.
        yes: Whether ``--yes`` answered already.

    Raises:
        CommandRefusedError: There is no terminal to ask on, or the answer is no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        cause = "this needs a confirmation, and there is no terminal to ask on"
        raise CommandRefusedError(
            operation, subject, cause, "Add --yes, or --dry-run to see the effect.", status=ExitStatus.USAGE
        )
    sys.stderr.write(f"{effect}. Continue? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandRefusedError(operation, subject, "you did not confirm it", status=ExitStatus.REFUSED)
