"""A small, smooth clip, and writers for every format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Clip = dict[str, Any]


@pytest.fixture
def clip() -> Clip:
    """12 frames at 50 fps, 8 joints, yawing slowly while it walks along x."""
    t = np.arange(12) / 50.0
    yaw = 0.4 * t + 0.3
    zero = np.zeros_like(t)
    return {
        "fps": 50.0,
        "root_pos": np.stack([0.4 * t, 0.01 * np.sin(t), 0.47 + 0.0 * t], axis=1),
        "root_rot": np.stack([zero, zero, np.sin(yaw / 2), np.cos(yaw / 2)], axis=1),
        "dof_pos": 0.2 * np.sin(np.outer(t, np.arange(1, 9))),
    }


@pytest.fixture
def as_npz() -> Callable[..., bytes]:
    def write(clip: Clip, **more: Any) -> bytes:
        out = io.BytesIO()
        np.savez(out, **{**clip, **more})
        return out.getvalue()

    return write


@pytest.fixture
def as_json() -> Callable[..., bytes]:
    def write(clip: Clip, **more: Any) -> bytes:
        return json.dumps({k: np.asarray(v).tolist() for k, v in {**clip, **more}.items()}).encode()

    return write


@pytest.fixture
def as_csv() -> Callable[[Clip], bytes]:
    def write(clip: Clip) -> bytes:
        rows = np.concatenate([clip["root_pos"], clip["root_rot"], clip["dof_pos"]], axis=1)
        return "".join(",".join(map(repr, map(float, row))) + "\n" for row in rows).encode()

    return write
