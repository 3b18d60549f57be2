"""Modes, recipe files and buckets of physics, as `--mode`, `--recipe FILE` and `--physics` take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from amp_core.cli.options import refuse_usage
from amp_core.errors import InputRefused, RecipeRefused
from amp_core.recipe import DEFAULT_MODE, GENERATED_MODES, MODES, PhysicsScale, Recipe
from amp_core.strict_json import read_json
from amp_core.tiers import check_recipe

MAX_BYTES = 1 << 20


def parse_physics(buckets: Sequence[str], option: str = "--physics") -> list[PhysicsScale]:
    """The buckets that an option names, each once, in their order.

    Raises:
      typer.BadParameter: one of them cannot be read.
    """
    with refuse_usage(option):
        return list(dict.fromkeys(PhysicsScale.parse(text) for text in buckets))


def parse_factors(options: Mapping[str, str | None]) -> dict[str, list[float]]:
    """`--friction 0.7,1.3` and the like: the factors of each quantity, none where its option is missing.

    Raises:
      typer.BadParameter: one of them is no list of numbers.
    """
    factors: dict[str, list[float]] = {}
    for name, text in options.items():
        try:
            factors[name] = [] if text is None else [float(part) for part in text.split(",")]
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no list of factors, such as 0.7,1.0,1.3", param_hint=f"--{name}") from None
    return factors


def check_physics(fields: dict[str, Any], scales: Sequence[PhysicsScale], path: Path) -> None:
    """Refuse buckets beside a recipe that has physics of its own, unless both are the same.

    Args:
      fields: the recipe as its file has it.

    Raises:
      typer.BadParameter: they differ.
    """
    physics = fields.get("physics")
    if not scales or not isinstance(physics, dict) or all(factor == 1 for factor in physics.values()):
        return
    if len(scales) > 1 or any(getattr(scales[0], name, None) != factor for name, factor in physics.items()):
        raise typer.BadParameter(f"the recipe in {path} has physics of its own; drop one of the two", param_hint="--physics")


def check_mode(mode: str | None, option: str = "--mode", *, of_rollouts: bool = False) -> None:
    """Refuse an unknown mode.

    Args:
      of_rollouts: the mode selects rollouts; none is in mode `auto`, so that it would select nothing.

    Raises:
      typer.BadParameter: there is no such mode.
    """
    modes = GENERATED_MODES if of_rollouts else MODES
    if mode is not None and mode not in modes:
        raise typer.BadParameter(f"{mode!r} is no mode; choose {' or '.join(modes)}", param_hint=option)


def build_recipe(path: Path | None, mode: str | None, seed: int | None, scales: Sequence[PhysicsScale] = ()) -> Recipe:
    """The recipe of a file with mode and seed replaced, or that of a mode.

    Args:
      scales: the buckets that `--physics` names; they must not contradict the file.

    Raises:
      typer.BadParameter: the options contradict each other or the file.
      InputRefused, RecipeRefused: the file cannot be used.
    """
    if path is None:
        try:
            return Recipe.for_mode(mode or DEFAULT_MODE, seed=seed or 0)
        except RecipeRefused as error:
            # Nothing but an option can be wrong, so it is wrong usage.
            raise typer.BadParameter(str(error), param_hint=f"--{error.key}") from error
    fields = read_recipe(path)
    check_physics(fields, scales, path)
    if mode is not None and fields.get("mode", mode) != mode:
        raise typer.BadParameter(f"the recipe in {path} has mode {fields['mode']!r}; drop one of the two", param_hint="--mode")
    if mode is not None:
        fields["mode"] = mode
    if seed is not None:
        fields["seed"] = seed
    recipe = Recipe.from_dict(fields)
    check_recipe(recipe)
    return recipe


def read_recipe(path: Path) -> dict[str, Any]:
    """The object in a recipe file; its fields are checked where they are used.

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
        fields = read_json(text)
    except ValueError as error:
        raise RecipeRefused(f"not readable as JSON: {error}", file=str(path), expected="one JSON object") from error
    if not isinstance(fields, dict):
        raise RecipeRefused("not a recipe", file=str(path), expected="one JSON object")
    return fields
