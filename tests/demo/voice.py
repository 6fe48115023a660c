"""Print the demo's story on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from demo.report import Report


class Voice:
    """Prints stages with their durations, commands with their outputs, and remarks."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start of the demo."""
        return time.monotonic() - self._began

    def stage(self, text: str, seconds: float) -> None:
        self._console.print(f"[bold green]✓[/] [{self.seconds:5.1f} s] {escape(text)} [dim]({seconds:.1f} s)[/]")

    @contextmanager
    def timed(self, text: str) -> Iterator[None]:
        """Report the block as a stage when it ends without an exception."""
        started = time.monotonic()
        yield
        self.stage(text, time.monotonic() - started)

    def command(self, line: str, output: str) -> None:
        self._console.print(f"[bold]$ {line}[/]")
        self._console.print(output.rstrip(), markup=False)

    def remark(self, text: str) -> None:
        self._console.print(f"  {text}", markup=False)

    def plain(self, text: str) -> None:
        self._console.print(text, markup=False)

    def problem(self, text: str) -> None:
        self._console.print("[bold red]✗[/] ", end="")
        self._console.print(text, markup=False)

    def judge(self, report: Report, path: Path) -> bool:
        """Write and print the report; return whether everything holds."""
        report.write(path)
        problems = report.problems()
        for problem in problems:
            self.problem(problem)
        self.plain(path.read_text())
        return not problems
