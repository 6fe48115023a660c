"""One context of the user's kube config."""

from __future__ import annotations

import json
from dataclasses import dataclass

from localcluster.client import Client, CommandError


@dataclass(frozen=True)
class Context(Client):
    """A cluster by the name of its context: switching to another one meanwhile changes nothing."""

    name: str
    server: str
    """URL of its API server."""

    @property
    def context(self) -> str:
        return self.name


class NoContextError(Exception):
    """The kube config names no cluster; the message says what to do."""


def current() -> Context:
    """The current context of the kube config. Raises `NoContextError`."""
    try:
        Client().kubectl("config", "current-context")  # says more clearly that there is none
        config = json.loads(Client().kubectl("config", "view", "--minify", "--output=json"))
    except CommandError as error:
        cause = last_line(error)
        raise NoContextError(
            f"choose a cluster: {cause}. List yours with `kubectl config get-contexts`, then take one with "
            "`kubectl config use-context`."
        ) from None
    return Context(config["current-context"], config["clusters"][0]["cluster"].get("server", ""))


def last_line(error: CommandError) -> str:
    """What kubectl said at last, which is what went wrong; earlier lines are its attempts."""
    return str(error).strip().splitlines()[-1].removeprefix("error: ").rstrip(".?")
