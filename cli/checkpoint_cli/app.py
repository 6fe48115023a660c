"""The two programs: they find the verb, and turn each end of it into an exit status and at most one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn, get_type_hints

import click
import typer
from typer.completion import completion_init  # type: ignore[attr-defined]
from typer.core import TyperGroup
from typer.main import get_command

from checkpoint_cli.verbs import Door, Verb, verbs_of

_TRACEBACK = "CHECKPOINT_TRACEBACK"
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_HELP = {
    Door.BUCKET: """Look after the checkpoints of a run in a bucket, without a cluster.

A run is named by its URL, one of its snapshots by <url>@latest, @best, @<step> or @<id>.
Credentials are those of the environment, or of --credentials-folder.

Example: checkpoint ls s3://training/llama-7b""",
    Door.CLUSTER: """Look after the checkpoints of a run by the name of its Checkpoint.

A snapshot is named by <name>@latest, @best, @<step> or @<id>.
The cluster and the namespace are those of kubectl, or of --context and -n.

Example: kubectl ckpt status llama-7b""",
}


def bucket(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `checkpoint`."""
    sys.exit(run(Door.BUCKET, sys.argv[1:] if arguments is None else arguments))


def cluster(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `kubectl ckpt`."""
    sys.exit(run(Door.CLUSTER, sys.argv[1:] if arguments is None else arguments))


def run(door: Door, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; see ``exits.ExitStatus``."""
    try:
        status = _run(door, arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail(door, "interrupted", 130)
    except BrokenPipeError:
        # The interpreter flushes again at its exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return status


def _run(door: Door, arguments: Sequence[str]) -> int:
    if os.environ.get(_complete_variable(door)):
        completion_init()
        program(door).main(args=list(arguments), prog_name=_program_name(door), complete_var=_complete_variable(door))
    group = program(door)
    try:
        with group.make_context(door.value, list(arguments) or ["--help"]) as context:
            answer = group.invoke(context)
            return int(answer or 0)
    except typer.Exit as end:
        return end.exit_code
    except (typer.Abort, EOFError):
        return _fail(door, "interrupted", 130)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last stop before the user
        return _explained(door, error)


def _explained(door: Door, error: Exception) -> int:
    from checkpoint_cli.exits import ExitStatus, one_line, status_of
    from checkpoint_sidecar.core.errors import CheckpointError

    if os.environ.get(_TRACEBACK):
        traceback.print_exception(error)
    if isinstance(error, CheckpointError):
        return _fail(door, one_line(str(error)), status_of(error))
    if isinstance(error, click.ClickException):
        return _fail(
            door, f"{one_line(error.format_message())} See `{_invoked(door, error)} --help`.", ExitStatus.USAGE
        )
    text = f"unexpected {type(error).__name__}: {one_line(str(error))}. Set {_TRACEBACK}=1 to see where."
    return _fail(door, text, ExitStatus.DEFECT)


def _invoked(door: Door, error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else door.value


def _fail(door: Door, text: str, status: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr.write(f"{door.value}: {text}\n")
    return int(status)


class LazyGroup(TyperGroup):
    """A program whose verbs are imported when they are needed, and whose help needs none of them."""

    door = Door.BUCKET

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        verb = next((verb for verb in verbs_of(self.door) if verb.name == cmd_name), None)
        return None if verb is None else load(self.door, verb)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [verb.name for verb in verbs_of(self.door)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Verbs"):
            formatter.write_dl([(verb.name, verb.summary) for verb in verbs_of(self.door)])


class _BucketGroup(LazyGroup):
    door = Door.BUCKET


class _ClusterGroup(LazyGroup):
    door = Door.CLUSTER


def program(door: Door) -> LazyGroup:
    """Return a program, without any of its verbs."""
    app = typer.Typer(
        cls=_BucketGroup if door is Door.BUCKET else _ClusterGroup,
        add_completion=False,
        context_settings=_CONTEXT,
        rich_markup_mode=None,
    )
    app.callback(help=_HELP[door].replace("\n\n", "\n\n\b\n"))(_version_option(door))
    group = get_command(app)
    assert isinstance(group, LazyGroup)
    # Only their names are needed, to suggest one for a misspelled verb.
    group.commands = dict.fromkeys((verb.name for verb in verbs_of(door)), group)
    return group


def load(door: Door, verb: Verb) -> Any:
    """Import a verb and return its command."""
    module, _, name = verb.place.partition(":")
    function = getattr(import_module(f"checkpoint_cli.{module}"), name)
    app = typer.Typer(add_completion=False, context_settings=_CONTEXT, rich_markup_mode=None)
    text = (function.__doc__ or "").replace("{program}", door.value)
    summary, _, rest = text.partition("\n\n")
    # "\b" keeps the lines of a paragraph as they are.
    paragraphs = "\n\n".join(f"\b\n{each}" for each in _dedented(rest).split("\n\n") if each.strip())
    app.command(name=verb.name, help=f"{summary}\n\n{paragraphs}", short_help=verb.summary)(function)
    command = get_command(app)
    _keep_help_of_arguments(command, function)
    return command


def _keep_help_of_arguments(command: Any, function: Callable[..., None]) -> None:
    """Set the help of arguments again: with click 8.4 and newer, this typer's arguments lose it.

    Such a click would also print them in a section of its own, beside typer's.
    """
    command.format_arguments = lambda ctx, formatter: None  # noqa: ARG005
    for name, annotation in get_type_hints(function, include_extras=True).items():
        shapes = getattr(annotation, "__metadata__", ())
        for parameter in command.params:
            if parameter.name == name and not getattr(parameter, "help", None) and shapes:
                parameter.help = shapes[0].help


def _dedented(text: str) -> str:
    import textwrap

    return textwrap.dedent(text).strip()


def _version_option(door: Door) -> Callable[..., None]:
    def show(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            sys.stdout.write(f"{door.value} {version('checkpoint-operator')}\n")
            raise typer.Exit

    def callback(
        version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=show),
    ) -> None: ...

    # Typer resolves annotations by name, which this scope has not.
    callback.__annotations__ = {"version": bool, "return": None}
    return callback


def _program_name(door: Door) -> str:
    return "checkpoint" if door is Door.BUCKET else "kubectl-ckpt"


def _complete_variable(door: Door) -> str:
    return f"_{_program_name(door).upper().replace('-', '_')}_COMPLETE"
