"""The check of names sees every way to bind one."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "lint" / "check_names.py"
spec = importlib.util.spec_from_file_location("check_names", SCRIPT)
assert spec is not None
assert spec.loader is not None
check_names = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_names)


@pytest.mark.parametrize(
    "source",
    [
        "told = 1",
        "told, x = 1, 2",
        "(told := 1)",
        "x.told = 1",
        "for told in (): pass",
        "with x as told: pass",
        "[0 for told in ()]",
        "def told(): pass",
        "class Told: pass",
        "def f(x, *told): pass",
        "lambda told: 0",
        "try: pass\nexcept E as told: pass",
        "import json as told",
        "from json import loads as told",
        "match x:\n    case told: pass",
        "match x:\n    case [0, *told]: pass",
        "match x:\n    case {0: 0, **told}: pass",
        "match x:\n    case int() as told: pass",
        "told2 = 1",
        "_told_ = 1",
    ],
)
def test_a_binding_is_judged(source: str) -> None:
    names = [check_names.bare_word(name) for name, _ in check_names.iterate_names(ast.parse(source), frozenset())]
    assert "told" in names


@pytest.mark.parametrize(("field", "expected"), [("told: int", 1), ("told2: int = 0", 1), ("what: str", 0)])
def test_a_field_is_judged_unless_it_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], field: str, expected: int
) -> None:
    monkeypatch.setattr(check_names, "ROOT", tmp_path)
    (tmp_path / "CONTRIBUTING.md").write_text("## Names\n\n| say | for | not |\n|---|---|---|\n| result | | `told`, `what` |\n")
    (tmp_path / "amp_core").mkdir()
    (tmp_path / "amp_core/a.py").write_text(f"class A:\n    {field}\n")
    assert check_names.main(list_all=False) == expected
    assert ("amp_core/a.py:2" in capsys.readouterr().out) == bool(expected)
