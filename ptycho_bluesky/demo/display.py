"""Progress of the loop on the terminal: one bar for the demo, one line for what each stage is doing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["Display"]


class Display:
    """Shows which scan and which stage is under way; on a terminal that is no terminal, one line a step.

    Parameters
    ----------
    steps : int
        Number of steps of the whole demo.
    console : Console, optional
        Where to draw.
    """

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=steps)
        self._started_s = time.monotonic()
        self._headline = ""

    def set_steps(self, steps: int) -> None:
        """State the number of steps, once it is known."""
        self._progress.update(self._task, total=steps)

    def step(self, headline: str) -> None:
        """Begin the next step of the demo."""
        if self._headline:
            self._progress.advance(self._task)
        self._headline = headline
        self._progress.update(self._task, description=headline)
        self.note(f"[bold]{headline}[/]")

    def stage(self, text: str) -> None:
        """Show what is being done within the step."""
        self._progress.update(self._task, description=f"{self._headline}: {text}")

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(f"[dim]{time.monotonic() - self._started_s:6.1f} s[/]  {text}", highlight=False)

    @contextmanager
    def timed(self, text: str) -> Iterator[None]:
        """Show a stage and, when it took long, how long."""
        self.stage(text)
        begun = time.monotonic()
        yield
        if (took := time.monotonic() - begun) > 0.5:
            self.note(f"   {text}: {took:.1f} s")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._progress.update(self._task, completed=self._progress.tasks[0].total)
        self._progress.stop()
