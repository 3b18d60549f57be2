"""Modes, recipe files and buckets of physics, as `--mode`, `--recipe FILE` and `--physics` take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.errors import InputRefused, RecipeRefused
from amp_core.strict_json import read_json

if TYPE_CHECKING:
    from amp_core.recipe import PhysicsScale

MAX_BYTES = 1 << 20

Physics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="BUCKET",
        help="Score in these physics: factors such as friction=0.7,mass=1.1,damping=1.0, or canonical; may be repeated.",
    ),
]


def parse_physics(given: Sequence[str], option: str = "--physics") -> list[PhysicsScale]:
    """The buckets that an option names, each once, in their order; what cannot be read is wrong usage."""
    from amp_core.recipe import PhysicsScale

    try:
        return list(dict.fromkeys(PhysicsScale.parse(text) for text in given))
    except RecipeRefused as error:
        raise typer.BadParameter(f"{error.what}; expected {error.expected}", param_hint=option) from None


def check_physics(facts: dict[str, Any], scales: Sequence[PhysicsScale], path: Path) -> None:
    """Refuse, as wrong usage, buckets beside a recipe that is of another bucket itself."""
    own = facts.get("physics")
    if not scales or not isinstance(own, dict) or all(factor == 1 for factor in own.values()):
        return
    if len(scales) > 1 or any(getattr(scales[0], name, None) != factor for name, factor in own.items()):
        raise typer.BadParameter(f"the recipe in {path} has physics of its own; drop one of the two", param_hint="--physics")


def check_mode(mode: str | None, option: str = "--mode", *, of_rollouts: bool = False) -> None:
    """Refuse, as wrong usage, a mode that there is not.

    Args:
      of_rollouts: it is to find rollouts, and none is in mode `auto`: that would only find nothing.
    """
    from amp_core.recipe import GENERATED_MODES, MODES

    known = GENERATED_MODES if of_rollouts else MODES
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
        facts = read_json(text)
    except ValueError as error:
        raise RecipeRefused(f"not readable as JSON: {error}", file=str(path), expected="one JSON object") from error
    if not isinstance(facts, dict):
        raise RecipeRefused("not a recipe", file=str(path), expected="one JSON object")
    return facts
