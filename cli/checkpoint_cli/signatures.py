"""Gives verbs the parameters that all verbs of a door share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def with_parameters(
    function: Callable[..., None],
    run: Callable[..., None],
    *,
    made: Collection[str],
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Callable[..., None]:
    """Return ``run`` with the signature that typer reads: arguments, the function's own parameters, then options.

    Args:
        made: Parameters of the function that ``run`` makes out of the others.
        arguments, options: Annotations by name. Options are empty texts by default.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [each for each in signature.parameters.values() if each.name not in made]
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, annotation=shape) for name, shape in arguments.items()]
    parameters += [each.replace(kind=kind) for each in own]
    parameters += [inspect.Parameter(name, kind, default="", annotation=shape) for name, shape in options.items()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__doc__ = function.__doc__
    return run
