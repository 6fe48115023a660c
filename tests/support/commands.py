"""Runs the command line inside the test, and keeps what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from checkpoint_cli.app import run
from checkpoint_cli.verbs import Door


@dataclass(frozen=True)
class Ran:
    """One command line that has ended."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.errors
        return json.loads(self.output)

    @property
    def problem(self) -> str:
        """The one line on standard error."""
        assert self.errors.count("\n") == 1, self.errors
        return self.errors.strip()


class Program:
    """One of the two programs."""

    def __init__(self, door: Door, capsys: pytest.CaptureFixture[str]) -> None:
        self.door = door
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ran:
        self._capsys.readouterr()
        status = run(self.door, arguments)
        captured = self._capsys.readouterr()
        return Ran(status, captured.out, captured.err)
