"""Dividing a version by lineage, so that a clip and its variants stay in one part."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

__all__ = ["check_fractions", "divide_lineages"]


def check_fractions(fractions: Sequence[float], seed: int) -> list[float]:
    """The fractions as floats.

    Raises:
      ValueError: they are not positive, or do not add up to 1.
      TypeError: the seed is no whole number.
    """
    shares = [float(share) for share in fractions]
    if not shares or any(not share > 0.0 for share in shares) or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(f"the fractions are {list(fractions)}; expected positive numbers that add up to 1, such as (0.9, 0.1)")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError("seed is no whole number")
    return shares


def divide_lineages(frames: Mapping[str, int], shares: Sequence[float], seed: int) -> list[list[str]]:
    """The lineages of each part; each goes to the part that lacks most frames, and no part is empty.

    Args:
      frames: the number of frames of each lineage; at least as many lineages as shares.
      shares: the fraction of all frames for each part.
      seed: decides the order in which the lineages are dealt out.
    """
    # An order by hash is the same on every machine and with every numpy.
    order = sorted(frames, key=lambda lineage: hashlib.sha256(f"{seed}:{lineage}".encode()).digest())
    parts: list[list[str]] = [[] for _ in shares]
    missing = [share * sum(frames.values()) for share in shares]
    for place, lineage in enumerate(order):
        empty = [index for index, lineages in enumerate(parts) if not lineages]
        candidates = empty if len(order) - place <= len(empty) else range(len(parts))
        index = max(candidates, key=missing.__getitem__)
        parts[index].append(lineage)
        missing[index] -= frames[lineage]
    return parts
