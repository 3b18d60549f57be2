"""Everything that a user can call, set or read is in docs/*.md."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import typer

from amp_core.cli.group import load_verbs
from amp_core.diagnosis import CODES, SUGGESTIONS
from amp_core.metrics import METRICS
from ampref_service.app import create_app
from ampref_service.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
ALL = "\n".join(PAGES.values())


def _routes(tmp_path: Path) -> list[tuple[str, str]]:
    app = create_app(Settings(data_dir=tmp_path))
    return [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]


def test_every_route_is_documented(tmp_path: Path) -> None:
    missing = []
    routes = _routes(tmp_path)
    for method, path in routes:
        # The pages may leave out the common prefix and name a parameter otherwise.
        pattern = re.sub(r"\\\{[^}]*\\\}", r"\\{[^}]*\\}", re.escape(path.removeprefix("/v1")))
        line = re.compile(rf"\b{method}\b.*{pattern}(?![\w/{{])")
        if not any(line.search(text) for text in ALL.splitlines()):
            missing.append(f"{method} {path}")
    assert len(routes) >= 15
    assert not missing, f"in no page of docs/: {missing}"


def test_every_setting_is_documented() -> None:
    missing = [name for field in Settings.model_fields if f"`{(name := f'AMPREF_{field.upper()}')}`" not in ALL]
    assert not missing, f"in no page of docs/: {missing}"


def test_every_metric_is_documented() -> None:
    missing = [metric.name for metric in METRICS if f"`{metric.name}`" not in ALL]
    assert not missing, f"in no page of docs/: {missing}"


def test_every_code_of_a_diagnosis_is_documented() -> None:
    findings, suggestions = PAGES["diagnosis.md"].split("\n## Suggestions\n")
    missing = [code for code in CODES if f"\n| `{code}` |" not in findings]
    missing += [code for code in SUGGESTIONS if f"\n| `{code}` |" not in suggestions]
    assert not missing, f"not in docs/diagnosis.md: {missing}"
    told = re.findall(r"^\| `(\w+)` \|", findings.partition("\n## Findings\n")[2] + suggestions, flags=re.MULTILINE)
    unknown = set(told) - {*CODES, *SUGGESTIONS}
    assert not unknown, f"docs/diagnosis.md explains what is never said: {unknown}"


def _verbs() -> dict[str, typer.core.TyperCommand]:
    commands = {}
    for verb in load_verbs():
        command = verb.load()
        if isinstance(command, typer.core.TyperGroup):
            commands |= {f"{verb.name} {name}": inner for name, inner in command.commands.items()}
        else:
            commands[verb.name] = command
    return commands


@pytest.mark.parametrize("verb", sorted(_verbs()))
def test_every_verb_and_option_is_documented(verb: str) -> None:
    sections = re.split(r"^## ", PAGES["cli.md"], flags=re.MULTILINE)
    section = next((s for s in sections if s.startswith(f"`ampref {verb}`")), None)
    assert section is not None, f"docs/cli.md has no section '## `ampref {verb}`'"
    shown = [param for param in _verbs()[verb].params if not getattr(param, "hidden", False)]
    options = {name for param in shown for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}
    missing = sorted(name for name in options - {"--help"} if not re.search(rf"{name}(?![\w-])", section))
    assert not missing, f"section {verb!r} of docs/cli.md lacks {missing}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", prose), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_anchors_of_links_name_a_heading() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            linked = page.parent / target if target else page
            assert anchor in headings(linked), f"{page.name} links to {target}#{anchor}, which is no heading"


PACKAGES = r"(?:amp_core|ampref_service|ampref_workers|ampref_migrations)"
FOLDERS = ("", "service", "workers", "migrations")


def exists_in_code(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:count]))
        except ModuleNotFoundError:  # The parent is no package.
            continue
        if spec is None:
            continue
        if count == len(parts):
            return True
        value: object = importlib.import_module(spec.name)
        for part in parts[count:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def test_names_of_the_code_exist() -> None:
    for page, text in PAGES.items():
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        names = {name for span in spans for name in re.findall(rf"(?<![\w./]){PACKAGES}(?:\.\w+)+", span)}
        for module, imported in re.findall(rf"^\s*from ({PACKAGES}[\w.]*) import ([\w, ]+)", text, flags=re.MULTILINE):
            names |= {f"{module}.{name.strip()}" for name in imported.split(" as ")[0].split(",")}
        missing = sorted(name for name in names if not exists_in_code(name))
        assert not missing, f"{page} names {missing}, which the code does not have"


def test_paths_of_the_code_exist() -> None:
    start = rf"(?:{PACKAGES}|service|workers|migrations|tests|examples|bench|lint|requirements)/"
    for page, text in PAGES.items():
        paths = {
            path for span in re.findall(r"`([^`\n]+)`", text) for path in re.findall(rf"(?<![\w./]){start}[\w./*-]*", span)
        }
        missing = sorted(path for path in paths if not any(any((ROOT / folder).glob(path.rstrip("/."))) for folder in FOLDERS))
        assert not missing, f"{page} names {missing}, which do not exist"


def test_the_glossary_is_alphabetical() -> None:
    terms = [term.lower() for term in re.findall(r"^- \*\*(.+?)\*\*", PAGES["glossary.md"], flags=re.MULTILINE)]
    assert len(terms) > 50
    assert terms == sorted(terms)


# Pages whose lines are still longer than a person reads with ease.
@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_lines_and_cells_are_short(page: Path) -> None:
    """At most 130 characters a line of prose and 160 a table cell; code blocks may be as wide as their output."""
    code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif code:
            continue
        elif line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
            assert max(map(len, cells)) <= 160, f"{page.name}:{number} has a cell of {max(map(len, cells))} characters"
        else:
            assert len(line) <= 130, f"{page.name}:{number} has {len(line)} characters"
