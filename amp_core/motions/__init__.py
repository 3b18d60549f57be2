"""The bundled motions: clips of this project's own making for the bundled WildRobot, one or more in each format.

They are for demos, tests and first steps. `examples/make_motions.py` writes them, and nothing else does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["bundled_motions", "reading_options"]

FORMATS = (".csv", ".json", ".npz", ".pkl")

# A CSV holds neither its rate nor its quaternion order.
_READING_OPTIONS: dict[str, dict[str, Any]] = {"weight_shift.csv": {"fps": 30.0, "quat_order": "wxyz"}}


def bundled_motions() -> list[Path]:
    """The bundled motion files, by name."""
    return sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in FORMATS)


def reading_options(motion: Path) -> dict[str, Any]:
    """The `fps` and `quat_order` that `read_motion`, the `POST /clips` form or `ampref submit` needs for a bundled file.

    Empty for the formats that hold them.
    """
    return dict(_READING_OPTIONS.get(motion.name, {}))
