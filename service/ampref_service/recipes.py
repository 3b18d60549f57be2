"""Recipes as requests name them and as the catalog keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amp_core.errors import RecipeRefused
from amp_core.recipe import DEFAULT_MODE, Planner, Recipe
from amp_core.tiers import check_recipe
from ampref_service.catalog.records import RecipeRow


def resolve_recipe(mode: str | None, seed: int | None, recipe: Any, *, max_plans: float) -> Recipe:
    """The recipe of a request: a mode's usual one, a complete one, or the part that differs from the usual one.

    `mode` and `seed` are those of a recipe that does not state them itself.

    Raises:
      RecipeRefused: there is no such recipe, it cannot be used here, `mode` or `seed` contradicts it, or it asks for more than
        `max_plans` plans of the usual size.
    """
    if recipe is None:
        return Recipe.for_mode(mode or DEFAULT_MODE, seed=seed or 0)
    if isinstance(recipe, dict):
        for name, value in (("mode", mode), ("seed", seed)):
            if value is not None and recipe.get(name, value) != value:
                raise RecipeRefused(
                    f"{name} is given twice: in the recipe and beside it, and they differ",
                    key=name,
                    expected="one of the two, or both the same",
                    remedy=f"Leave out the field {name}",
                )
        recipe = {"mode": mode or DEFAULT_MODE} | ({} if seed is None else {"seed": seed}) | recipe
    result = Recipe.from_dict(recipe)
    # Before it is stored: the worker would refuse it too.
    check_recipe(result)
    plans = plan_effort(result.to_dict())
    if plans > max_plans:
        raise RecipeRefused(
            f"the recipe asks for as much work as {plans:.6g} plans of the usual size",
            key="planner",
            expected=f"at most {max_plans:.6g}; the usual recipe of mode {result.mode} asks for "
            f"{plan_effort(Recipe.for_mode(result.mode).to_dict()):.6g}",
            remedy="Ask for fewer samples, rounds, branches or attempts, or a longer step, or have the operator raise "
            "AMPREF_MAX_PLANS",
        )
    return result


def plan_effort(recipe: Mapping[str, Any]) -> float:
    """How many plans of the usual size a job under a recipe may make: `Planner.effort`, 0 for a recipe that plans nothing."""
    if not recipe.get("planner"):
        return 0.0
    effort = Planner.from_dict(recipe["planner"]).effort
    if recipe.get("mode") == "auto":
        assisted = Recipe.from_dict(recipe).stage("assisted").planner
        effort += assisted.effort if assisted is not None else 0.0
    return effort


def recipe_row(recipe: Recipe) -> RecipeRow:
    """A recipe as the catalog keeps it."""
    return RecipeRow(recipe.digest, recipe.mode, recipe.to_dict())
