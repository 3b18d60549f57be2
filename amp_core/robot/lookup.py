"""From a robot's name or path to its `robot.yaml`."""

from __future__ import annotations

from pathlib import Path

from amp_core.errors import RobotRefused

SPEC_FILE = "robot.yaml"

_BUNDLED_DIR = Path(__file__).parents[1] / "robots"


def bundled_robots() -> list[str]:
    """The names of the robots that come with this package."""
    return sorted(entry.parent.name for entry in _BUNDLED_DIR.glob(f"*/{SPEC_FILE}"))


def find_spec_file(name_or_path: str | Path) -> Path:
    """The `robot.yaml` of a bundled robot's name, of a path to such a file, or of a folder that holds one.

    Raises:
      RobotRefused: there is none; lists the bundled robots.
    """
    if isinstance(name_or_path, str) and name_or_path in bundled_robots():
        return _BUNDLED_DIR / name_or_path / SPEC_FILE
    path = Path(name_or_path)
    if path.is_dir():
        path = path / SPEC_FILE
    if not path.is_file():
        raise RobotRefused(
            f"there is no robot {str(name_or_path)!r}",
            expected=f"a path to a {SPEC_FILE}, or a bundled name: {', '.join(bundled_robots())}",
            remedy="Check the spelling, or write a robot.yaml (docs/robots.md)",
        )
    return path.resolve()
