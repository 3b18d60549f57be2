"""Recipe files, as `--recipe FILE` takes them, and what `--mode`, `--seed`, `--physics` and `--profile` change of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typer import BadParameter

from amp_core.cli.options import refuse_usage
from amp_core.commands import quote_path
from amp_core.errors import InputRefused, RecipeRefused
from amp_core.recipe import DEFAULT_MODE, PhysicsScale, Recipe
from amp_core.strict_json import read_json
from amp_core.tiers import check_recipe

MAX_BYTES = 1 << 20


def build_recipe(
    path: Path | None, mode: str | None, seed: int | None, scales: Sequence[PhysicsScale] = (), profile: str | None = None
) -> Recipe:
    """The recipe of a file with mode, seed and gate profile replaced, or that of a mode.

    Args:
      scales: the buckets that `--physics` names; they must not contradict the file.

    Raises:
      typer.BadParameter: the options contradict each other or the file.
      InputRefused, RecipeRefused: the file cannot be used.
    """
    if path is None:
        with refuse_usage("--seed"):
            recipe = Recipe.for_mode(mode or DEFAULT_MODE, seed=seed or 0)
        return recipe if profile is None else replace(recipe, gate_profile=profile)
    fields = read_recipe(path, scales, profile)
    if mode is not None and fields.setdefault("mode", mode) != mode:
        raise BadParameter(f"the recipe in {path} has mode {fields['mode']!r}; drop one of the two", param_hint="--mode")
    try:
        recipe = Recipe.from_dict(fields if seed is None else fields | {"seed": seed})
        check_recipe(recipe)
    except RecipeRefused as error:
        error.file = str(path)
        raise
    return recipe


def read_recipe(path: Path, scales: Sequence[PhysicsScale], profile: str | None = None) -> dict[str, Any]:
    """The object in a recipe file; its fields are checked where they are used.

    Args:
      scales: the buckets that `--physics` names.
      profile: the gate profile that `--profile` names; it becomes the recipe's.

    Raises:
      typer.BadParameter: the recipe has physics of its own, which are not those of the buckets, or another gate profile.
      InputRefused: the file cannot be read.
      RecipeRefused: it is not one JSON object.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise RecipeRefused("this is too large for a recipe", file=str(path), expected=f"at most {MAX_BYTES} bytes")
        fields = read_json(text)
    except OSError as error:
        raise InputRefused(
            f"cannot be read: {error.strerror or error}",
            file=str(path),
            expected="a recipe as JSON",
            remedy=f"Check: ls -l {quote_path(path)}",
        ) from error
    except ValueError as error:
        raise RecipeRefused(f"not readable as JSON: {error}", file=str(path), expected="one JSON object") from error
    if not isinstance(fields, dict):
        raise RecipeRefused("not a recipe", file=str(path), expected="one JSON object")
    physics = fields.get("physics")
    factors = physics if isinstance(physics, dict) and any(factor != 1 for factor in physics.values()) else {}
    if factors and scales and (len(scales) > 1 or any(getattr(scales[0], name, None) != factors[name] for name in factors)):
        raise BadParameter(f"the recipe in {path} has physics of its own; drop one of the two", param_hint="--physics")
    if profile is not None and fields.setdefault("gate_profile", profile) != profile:
        problem = f"the recipe in {path} has the gate profile {fields['gate_profile']!r}; drop one of the two"
        raise BadParameter(problem, param_hint="--profile")
    return fields
