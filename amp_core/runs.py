"""Stretches of consecutive frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["find_runs"]


def find_runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open (start, stop) of the runs of True in (N,), in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
