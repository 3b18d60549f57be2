"""Canonical JSON: one value, one sequence of bytes."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["canonical_json"]


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys, two spaces of indentation and a newline at the end.

    Numbers are written as Python's `repr` writes them (the shortest decimal that reads back as the same float64).

    Raises:
      ValueError: NaN or an infinity, which JSON has no words for.
    """
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8") + b"\n"
