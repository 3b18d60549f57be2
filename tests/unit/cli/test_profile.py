"""`--profile`: which gates decide the tier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer import BadParameter

from amp_core.cli.options import parse_profile
from amp_core.cli.recipes import build_recipe
from amp_core.recipe import GATE_PROFILE


def test_the_profile_is_part_of_the_recipe() -> None:
    assert build_recipe(None, "rollout", None).gate_profile == GATE_PROFILE == "amp-0.12"
    assert build_recipe(None, "rollout", None, profile="amp-0.12-dynamic").gate_profile == "amp-0.12-dynamic"


def test_a_profile_that_contradicts_the_recipe_is_wrong_usage(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"mode": "rollout", "gate_profile": "amp-0.11"}))
    assert build_recipe(path, None, None, profile="amp-0.11").gate_profile == "amp-0.11"
    with pytest.raises(BadParameter, match=r"has the gate profile 'amp-0\.11'"):
        build_recipe(path, None, None, profile="amp-0.12")


def test_an_unknown_profile_is_wrong_usage() -> None:
    with pytest.raises(BadParameter, match=r"no gate profile; choose amp-0\.11 or"):
        parse_profile("amp-9")
