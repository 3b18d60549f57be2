"""Commands in remedies and next steps, so that they can be typed as they are."""

from __future__ import annotations

import os
import shlex

__all__ = ["CUT_COMMAND", "fill_command", "quote_path", "robot_option"]

CUT_COMMAND = "ampref cut CLIP"
"""In remedies, for whoever knows the file's path to fill in (`fill_command`)."""


def quote_path(path: str | os.PathLike[str]) -> str:
    """A path as a shell takes it, and never for an option; characters that cannot be printed as bash's `$'…'` writes them."""
    text = os.fspath(path)
    text = f"./{text}" if text.startswith("-") else text
    if text.isprintable():
        return shlex.quote(text)
    escape = {"\\": "\\\\", "'": "\\'"}
    return (
        "$'"
        + "".join(escape.get(c, c) if c.isprintable() else "".join(f"\\x{b:02x}" for b in os.fsencode(c)) for c in text)
        + "'"
    )


def robot_option(robot: str) -> str:
    """What a next command needs for the robot of this one: nothing, where it is the default of commands for files."""
    return "" if robot == "wildrobot" else f" --robot {quote_path(robot)}"


def fill_command(remedy: str | None, path: str | os.PathLike[str]) -> str | None:
    """A remedy with a file's path in its commands, so that they can be typed as they are."""
    return remedy and remedy.replace(CUT_COMMAND, f"ampref cut {quote_path(path)}")
