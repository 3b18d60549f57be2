"""The table of verbs: its help, what it imports, and a table that is broken."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from amp_core.cli import main as cli
from amp_core.cli.group import ENTRY_POINTS, PANELS, Verb, attach_json_target, load_verbs

VERBS = load_verbs()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_summary_of_a_verb_is_the_first_line_of_its_help(verb: Verb) -> None:
    first = (verb.load().help or "").partition("\n")[0]
    assert first.startswith(verb.summary)
    assert verb.panel in PANELS


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_help_shows_every_summary_in_full_under_its_panel(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    headings = "|".join(f"^{re.escape(panel)}:$" for panel in PANELS)
    sections = dict(zip(PANELS, re.split(headings, text, flags=re.MULTILINE)[1:], strict=True))
    for verb in VERBS:
        assert f"{verb.name} {verb.summary}" in " ".join(sections[verb.panel].split())


@pytest.mark.parametrize("columns", [60, 200])
def test_the_help_of_a_group_is_not_cut_either(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.run(["dataset", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "lock Gather the clips that a query selects, test them and lock them as a version that never changes." in text


def test_a_table_that_cannot_be_loaded_costs_its_own_verbs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('out of order')\n")
    (tmp_path / "plugin.py").write_text(
        "from amp_core.cli.group import Verb\n"
        "VERBS = [Verb('score', 'Mine', 'Mine.', 'nowhere:score'), Verb('hello', 'Mine', 'Say hello.', 'plugin:hello')]\n"
        "def hello():\n    print('hello')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    installed = importlib.metadata.entry_points(group=ENTRY_POINTS)
    plugins = [
        importlib.metadata.EntryPoint(name, value, ENTRY_POINTS)
        for name, value in (("broken", "broken_plugin:VERBS"), ("gone", "plugin:TABLE"), ("plugin", "plugin:VERBS"))
    ]
    monkeypatch.setattr("amp_core.cli.group.entry_points", lambda group: [*installed, *plugins])
    assert cli.run(["robots", "-q"]) == 0
    captured = capsys.readouterr()
    assert "wildrobot" in captured.out
    assert "warning: the verbs of broken (broken_plugin:VERBS) cannot be loaded: RuntimeError: out of order" in captured.err
    assert "warning: the verbs of gone (plugin:TABLE) cannot be loaded: AttributeError" in captured.err
    assert cli.run(["hello"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert cli.run(["--help"]) == 0
    listed = capsys.readouterr().out
    assert "Mine:\n  hello     Say hello.\n" in listed
    assert "Roll motions out in MuJoCo" in listed, "the product's own verb comes before a plug-in's"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a plug-in of one module, whose table comes before all others."""

    def add(text: str) -> None:
        name = f"plugin_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(f"from amp_core.cli.group import Verb\n{text}".replace("SELF", name))
        monkeypatch.syspath_prepend(tmp_path)
        installed = importlib.metadata.entry_points(group=ENTRY_POINTS)
        plugin = importlib.metadata.EntryPoint("plugin", f"{name}:VERBS", ENTRY_POINTS)
        monkeypatch.setattr("amp_core.cli.group.entry_points", lambda group: [plugin, *installed])

    return add


def test_a_plugin_cannot_replace_a_verb_and_is_warned_of(
    install: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("VERBS = [Verb('robots', 'Mine', 'Mine.', 'SELF:robots')]\ndef robots(): print('mine')")
    assert cli.run(["robots", "-q"]) == 0
    captured = capsys.readouterr()
    assert "wildrobot" in captured.out
    assert re.search(r"warning: the verb 'robots' of plugin \(.*\) is left out, because amp_core has it already", captured.err)


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(3)",
        "from types import SimpleNamespace\nVERBS = [SimpleNamespace(name='hello')]",
        "VERBS = [Verb(None, None, None, None)]",
        "VERBS = [Verb('hello', 7, 'Say hello.', 'SELF:hello')]",
        "VERBS = [('hello', 'Mine', 'Say hello.', 'SELF:hello')]",
        "VERBS = None",
    ],
)
@pytest.mark.parametrize("words", [["robots", "-q"], ["--help"]])
def test_a_table_that_is_none_costs_a_warning(
    words: list[str], text: str, install: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(text)
    assert cli.run(words) == 0
    captured = capsys.readouterr()
    assert captured.out
    assert captured.err.startswith("warning: the verbs of plugin (")
    assert "hello" not in captured.out


@pytest.mark.parametrize(
    "text",
    [
        "VERBS = [Verb('hello', 'Mine', 'Say hello.', 'SELF:missing')]",
        "VERBS = [Verb('hello', 'Mine', 'Say hello.', 'no_such_module:hello')]",
        "VERBS = [Verb('hello', 'Mine', 'Say hello.', 'not a name')]",
        "VERBS = [Verb('hello', 'Mine', 'Say hello.', 'SELF:VERBS')]",
        "VERBS = [Verb('hello', 'Mine', 'Say hello.', 'SELF:hello', 'physics')]\ndef hello(): import no_such_module",
    ],
)
def test_a_verb_that_its_plugin_cannot_bring_is_an_error_for_people(
    text: str, install: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(text)
    assert cli.run(["hello"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the verb 'hello' of a plug-in (")
    assert "Install the plug-in again" in captured.err


@pytest.mark.parametrize(
    ("word", "args", "attached"),
    [
        (False, ["clip", "--json", "ID"], ["clip", "--json=-", "ID"]),
        (False, ["clips", "--json"], ["clips", "--json=-"]),
        (False, ["clips", "--json", "-"], ["clips", "--json=-"]),
        (False, ["clips", "--json", "out.json"], ["clips", "--json=out.json"]),
        (False, ["clips", "--json", "--sort.json"], ["clips", "--json=-", "--sort.json"]),
        (False, ["clips", "--json=out.json", "-q"], ["clips", "--json=out.json", "-q"]),
        (True, ["--json", "out.json", "x.npz"], ["--json=out.json", "x.npz"]),
        (True, ["x.npz", "--json", "-", "y.npz"], ["x.npz", "--json=-", "y.npz"]),
        (True, ["x.npz", "--json", "--quiet"], ["x.npz", "--json=-", "--quiet"]),
        (True, ["x.npz", "--json"], ["x.npz", "--json=-"]),
        (True, ["--", "--json", "x.npz"], ["--", "--json", "x.npz"]),
    ],
)
def test_json_has_its_target_attached(word: bool, args: list[str], attached: list[str]) -> None:
    assert attach_json_target(args, word=word) == attached
