"""Modes and recipe files, as `--mode` and `--recipe FILE` take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from amp_core.errors import InputRefused, RecipeRefused

MAX_BYTES = 1 << 20


def check_mode(mode: str | None, option: str = "--mode", *, of_rollouts: bool = False) -> None:
    """Refuse, as wrong usage, a mode that there is not.

    Args:
      of_rollouts: it is to find rollouts, and none is in mode `auto`: that would only find nothing.
    """
    from amp_core.recipe import AVAILABLE_MODES, GENERATED_MODES

    known = GENERATED_MODES if of_rollouts else AVAILABLE_MODES
    if mode is not None and mode not in known:
        raise typer.BadParameter(f"{mode!r} is no mode; choose {' or '.join(known)}", param_hint=option)


def read_recipe(path: Path) -> dict[str, Any]:
    """The object in a recipe file; what it says is checked by whoever uses it.

    Raises:
      InputRefused: the file cannot be read.
      RecipeRefused: it is not one JSON object.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputRefused(
            f"cannot be read: {error.strerror or error}",
            file=str(path),
            expected="a recipe as JSON",
            remedy=f"Check: ls -l {path}",
        ) from error
    if len(text) > MAX_BYTES:
        raise RecipeRefused("this is too large for a recipe", file=str(path), expected=f"at most {MAX_BYTES} bytes")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeRefused(f"not readable as JSON: {error}", file=str(path), expected="one JSON object") from error
    if not isinstance(facts, dict):
        raise RecipeRefused("not a recipe", file=str(path), expected="one JSON object")
    return facts
