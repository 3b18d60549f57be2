"""How far long work has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from amp_core.cli.text import time_left

SECONDS_BETWEEN_PLAIN_LINES = 5.0
# From this share of the work and these seconds on, the rate so far predicts the rest.
_MIN_SHARE, _MIN_SEC = 0.02, 1.0


class Progress:
    """The state of long work; this class shows nothing.

    Args:
      description: what is being done.
      total: the amount of all the work, or None while it is unknown.
    """

    def __init__(self, description: str, total: float | None) -> None:
        self.description = description
        self.total = total
        self.done = 0.0
        self._start = time.monotonic()
        self._left: float | None = None

    def update(
        self,
        done: float | None = None,
        *,
        description: str | None = None,
        total: float | None = None,
        left: float | None = None,
    ) -> None:
        """Report the amount done so far; thread-safe enough for one reporter at a time.

        `left` is the time in seconds that the rest takes, from a caller with a better estimate than the rate so far.
        """
        self.done = self.done if done is None else done
        self.description = description or self.description
        self.total = self.total if total is None else total
        self._left = left
        self.show()

    def left(self) -> float | None:
        """Seconds that the rest takes: as reported, else by the rate since the start; None where neither is known."""
        if self._left is not None:
            return self._left
        elapsed = time.monotonic() - self._start
        share = self.done / self.total if self.total else 0.0
        if not _MIN_SHARE <= share < 1.0 or elapsed < _MIN_SEC:
            return None
        return elapsed * (1.0 - share) / share

    def show(self) -> None:
        """Show the state."""


class BarProgress(Progress):
    """A task of a rich progress bar."""

    def __init__(self, bar: Any, description: str, total: float | None) -> None:
        super().__init__(description, total)
        self._bar = bar
        self._task = bar.add_task(description, total=total, left="")

    def show(self) -> None:
        left = time_left(self.left())
        self._bar.update(self._task, completed=self.done, description=self.description, total=self.total, left=left)


class LineProgress(Progress):
    """A line every few seconds, for where there is no terminal."""

    def __init__(self, print_line: Callable[[str], None], description: str, total: float | None) -> None:
        super().__init__(description, total)
        self._print_line = print_line
        self._last = time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_PLAIN_LINES:
            self._last = now
            share = f"{100 * self.done / self.total:3.0f}%  " if self.total else ""
            left = time_left(self.left())
            self._print_line(f"{share}{self.description}" + (f", {left}" if left else ""))
