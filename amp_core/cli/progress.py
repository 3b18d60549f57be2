"""How far long work has come."""

from __future__ import annotations

import time
from collections.abc import Callable

from amp_core.cli.text import time_left

SECONDS_BETWEEN_PLAIN_LINES = 5.0
# From this share of the work and these seconds on, the rate so far predicts the rest.
_MIN_SHARE, _MIN_SEC = 0.02, 1.0


class Progress:
    """The state of long work.

    Args:
      description: the work, in a few words.
      total: the amount of all the work, or None while it is unknown.
      show: called with this object after each update.
    """

    def __init__(self, description: str, total: float | None, show: Callable[[Progress], None] = lambda _: None) -> None:
        self.description = self._name = description
        self.total = total
        self.amount = 0.0
        self._show = show
        self._start = time.monotonic()
        self._left: float | None = None

    def update(
        self,
        amount: float,
        text: str | None = None,
        *,
        description: str | None = None,
        total: float | None = None,
        left: float | None = None,
    ) -> None:
        """Report the amount of work so far; thread-safe enough for one reporter at a time.

        Args:
          text: what stands behind the work's name: `scoring: TEXT`.
          description: what stands in the place of both.
          left: the time in seconds that the rest takes, infinite where it is unknown; by default by the rate so far.
        """
        self.amount = amount
        self.description = f"{self._name}: {text}" if text else description or self.description
        self.total = self.total if total is None else total
        self._left = left
        self._show(self)

    def left(self) -> float | None:
        """Seconds that the rest takes: as reported, else by the rate since the start; None where neither is known."""
        if self._left is not None:
            return self._left
        elapsed_sec = time.monotonic() - self._start
        share = self.amount / self.total if self.total else 0.0
        return elapsed_sec * (1.0 - share) / share if _MIN_SHARE <= share < 1.0 and elapsed_sec >= _MIN_SEC else None


def line_printer(print_line: Callable[[str], None]) -> Callable[[Progress], None]:
    """Shows progress as a line every few seconds, for where there is no terminal."""
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_PLAIN_LINES:
            last = now
            share = f"{100 * progress.amount / progress.total:3.0f}%  " if progress.total else ""
            left = time_left(progress.left())
            print_line(f"{share}{progress.description}{', ' + left if left else ''}")

    return show
