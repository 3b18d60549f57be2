"""Drawing rows with replacement, in proportion to their weights or evenly."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ROWS", "Sampler", "check_draw"]

MOST_ROWS = 1 << 28
"""The most rows that one call draws, 29 GB of 27 features: a larger number is refused before memory runs out."""


class Sampler:
    """Draws from some rows of a version.

    Args:
      count: the number of rows to draw from, K.
      rows: (K,) the rows; None for 0 to K - 1.
      weights: (K,) their weights; None when all are equal, which takes no memory.
    """

    def __init__(self, count: int, rows: NDArray[np.int64] | None, weights: NDArray[np.float32] | None) -> None:
        self.count = count
        self._rows = rows
        self._weights = weights

    def draw(self, rng: np.random.Generator, n: int, *, weighted: bool) -> NDArray[np.int64]:
        """(n,) rows; a row of weight 0 is never drawn when `weighted`."""
        if weighted and self._cumulative is not None:
            total = self._cumulative[-1]
            last = int(np.searchsorted(self._cumulative, total, side="left"))
            places: NDArray[np.int64] = np.minimum(np.searchsorted(self._cumulative, rng.random(n) * total, side="right"), last)
        else:
            places = rng.integers(0, self.count, n)
        return places if self._rows is None else self._rows[places]

    @cached_property
    def _cumulative(self) -> NDArray[np.float64] | None:
        return None if self._weights is None else np.cumsum(self._weights, dtype=np.float64)


def check_draw(rng: object, n: object) -> int:
    """`n` as an int.

    Raises:
      TypeError, ValueError: `rng` is no `numpy.random.Generator`, or `n` no whole number from 1 to `MOST_ROWS`.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is {_describe_argument(rng)}; expected a numpy Generator, such as numpy.random.default_rng(0)")
    # A bool is an int to Python, but True is no number of rows.
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"n is {_describe_argument(n)}; expected a whole number of rows, such as 4096")
    rows = int(n)
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"n is {rows if abs(rows) < 1 << 64 else 'far more'}; expected 1 to {MOST_ROWS:,} rows")
    return rows


def _describe_argument(value: object) -> str:
    if value is not None and not isinstance(value, float | bool | str | np.generic):
        return f"a {type(value).__qualname__}"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
