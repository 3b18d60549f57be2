"""Column statistics that do not depend on how the rows arrived.

Floating-point sums depend on their order, and so on chunk sizes, thread counts and numpy's choice of kernel. Every float32
is an integer times a power of two; so the sums here are kept as integers, one per column and exponent, and are exact. Mean
and standard deviation are the float64 values nearest to the exact ones (std: of the exact variance's nearest float64), the
same on every machine and for every order of the rows.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STD_FLOOR", "ColumnStats"]

STD_FLOOR = 0.01
"""The smallest std that features are normalized by: below it the distribution test (6) calls a dimension constant."""

_EXPONENTS = 256
_LOW = (1 << 24) - 1
_ROWS = 1 << 14  # Rows a step: bounds memory, and keeps every partial sum exact in a float64 (2^24 · 2^14 < 2^53).


class ColumnStats:
    """Accumulates mean, std, min and max of the columns of finite float32 rows.

    Args:
      dim: number of columns, F.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.count = 0
        # Signed mantissas, and the high and low 24 bits of squared mantissas, by column and biased exponent.
        self._sums = np.zeros((3, dim * _EXPONENTS), np.int64)
        self._min = np.full(dim, np.inf, np.float32)
        self._max = np.full(dim, -np.inf, np.float32)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add finite rows, shape (k, F)."""
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != self._dim:
            raise ValueError(f"expected float32 rows of {self._dim} columns, not {rows.dtype} {rows.shape}")
        for start in range(0, len(rows), _ROWS):
            block = np.ascontiguousarray(rows[start : start + _ROWS], dtype=np.float32)
            bits = block.view(np.uint32)
            exponent = (bits >> 23) & 0xFF
            if (exponent == 0xFF).any():
                raise ValueError("NaN and infinities have no statistics")
            # A subnormal number (exponent 0) has no implicit leading one.
            mantissa = ((bits & 0x7FFFFF) | ((exponent != 0).astype(np.uint32) << 23)).astype(np.int64)
            square = mantissa * mantissa
            slot = (exponent + (np.arange(self._dim, dtype=np.uint32) * _EXPONENTS)).astype(np.intp).ravel()
            signed_mantissa = np.where(bits >> 31, -mantissa, mantissa)
            for total, part in zip(self._sums, (signed_mantissa, square >> 24, square & _LOW), strict=True):
                total += np.bincount(slot, weights=part.ravel(), minlength=total.size).astype(np.int64)
            self.count += len(block)
            np.minimum(self._min, block.min(axis=0), out=self._min)
            np.maximum(self._max, block.max(axis=0), out=self._max)

    def merge(self, stats: ColumnStats) -> None:
        """Add the rows that `stats` has; exact."""
        self._sums += stats._sums
        self.count += stats.count
        np.minimum(self._min, stats._min, out=self._min)
        np.maximum(self._max, stats._max, out=self._max)

    def to_dict(self) -> dict[str, list[float]]:
        """`mean`, `std` (population), `min`, `max`, `clip_low` and `clip_high` (mean ∓ 3·std): F float64 each."""
        if self.count == 0:
            raise ValueError("no rows, no statistics")
        means, stds = [], []
        for column in range(self._dim):
            mean, variance = self._moments(column)
            means.append(float(mean))
            stds.append(math.sqrt(float(variance)))
        return {
            "mean": means,
            "std": stds,
            # Adding zero turns -0.0 into 0.0: which of the two is "smallest" depends on the order of the rows.
            "min": [float(value) + 0.0 for value in self._min],
            "max": [float(value) + 0.0 for value in self._max],
            "clip_low": [mean - 3.0 * std for mean, std in zip(means, stds, strict=True)],
            "clip_high": [mean + 3.0 * std for mean, std in zip(means, stds, strict=True)],
        }

    def _moments(self, column: int) -> tuple[Fraction, Fraction]:
        """The exact mean and population variance of one column."""
        columns = slice(column * _EXPONENTS, (column + 1) * _EXPONENTS)
        total = square = 0
        parts: NDArray[Any] = self._sums[:, columns]
        for exponent in np.flatnonzero(parts.any(axis=0)).tolist():
            mantissa_sum, high, low = (int(value) for value in parts[:, exponent])
            # The value of mantissa m at biased exponent e is m · 2^(max(e, 1) - 150).
            shift = max(exponent, 1)
            total += mantissa_sum << shift
            square += ((high << 24) + low) << (2 * shift)
        mean = Fraction(total, self.count << 150)
        return mean, Fraction(self.count * square - total * total, (self.count * self.count) << 300)
