"""The command is a table of verbs: each package lists its own, and a verb's module is imported when the verb is called.

A package names its table as an entry point of the group `ampref.verbs`. `ampref --help` reads the tables alone, so that it
needs none of the extras and stays fast.
"""

from __future__ import annotations

import functools
import os
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

from amp_core.cli.output import STDOUT, Output
from amp_core.cli.targets import MOTION_SUFFIXES, is_json_motion
from amp_core.errors import AmprefError

ENTRY_POINTS = "ampref.verbs"

START = "Start here"
MOTIONS = "Motion engineers: score clips, test them, make variants"
CATALOG = "Researchers: the catalog of a service"
TRAINING = "Training nodes"
OPERATORS = "Operators of a service"
PANELS = (START, MOTIONS, CATALOG, TRAINING, OPERATORS)
"""The sections of `ampref --help` in their order, by who needs them; a plug-in's own sections follow."""


_VALUES = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}
"""What the help calls an option's value, by its type."""


def is_own(name: str) -> bool:
    """Whether a module, or `module:attribute`, is the product's and not a plug-in's."""
    package = name.partition(":")[0].partition(".")[0]
    return package in ("amp_core", "ampref_service", "ampref_workers", "ampref_migrations")


class Verb(NamedTuple):
    """A row of a package's table.

    Args:
      panel: the section of `ampref --help` that lists the verb.
      summary: one line for that list; the first line of the verb's own help.
      target: `module:attribute`, a function with typer's annotations or a typer app with verbs of its own.
      extra: the extra of the distribution that brings what the verb imports; None if the bare install does.
      json_word: whether any word after `--json` is the file to write, and not only a name that ends in `.json`.
    """

    name: str
    panel: str
    summary: str
    target: str
    extra: str | None = None
    json_word: bool = False

    def load(self) -> TyperCommand | TyperGroup:
        """Import the verb."""
        return _build_command(self.name, pkgutil.resolve_name(self.target))


@functools.cache
def _build_command(name: str, target: Any) -> TyperCommand | TyperGroup:
    """typer evaluates every annotation of every verb of a group, several times: once is enough for a process."""
    if isinstance(target, typer.Typer):
        group = typer.main.get_group(target)
        for command in group.commands.values():
            _name_values(command)
        return group
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(target)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    _name_values(command)
    return command


def list_verbs(panel: str, summaries: Mapping[str, str], *, extra: str | None = None, json_word: bool = False) -> list[Verb]:
    """Rows of a table that have all but their summaries in common, by target; a verb has the name of its attribute."""
    names = {target: target.rpartition(":")[2] for target in summaries}
    return [Verb(names[target], panel, summary, target, extra, json_word) for target, summary in summaries.items()]


def _name_values(command: Any) -> None:
    """Let the help show what a value is instead of its Python type."""
    for param in command.params:
        match = re.fullmatch(r"(?:list\[)?(int|float|str|Path)\]?", param.bare_type())
        if match and param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: None
        elif match:
            param.metavar = param.metavar or _VALUES[match[1]]


class MissingExtra(AmprefError):
    """A verb was called whose packages this environment does not have."""

    slug = "missing-extra"
    title = "A part of ampref is not installed"


class BrokenPlugin(AmprefError):
    """A verb was called that a plug-in lists and cannot bring."""

    slug = "broken-plugin"
    title = "A plug-in cannot be used"

    def __init__(self, verb: Verb, error: BaseException) -> None:
        super().__init__(
            f"the verb {verb.name!r} of a plug-in ({verb.target}) cannot be loaded: {type(error).__name__}: {error}",
            remedy="Install the plug-in again with what it needs, or uninstall it",
        )


class VerbCommand(TyperCommand):
    """Stands for a verb until it is called."""

    def __init__(self, verb: Verb) -> None:
        super().__init__(name=verb.name, short_help=verb.summary, rich_markup_mode=None, rich_help_panel=verb.panel)
        self.verb = verb

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        args = attach_json_target(args, word=self.verb.json_word)
        # An error that comes before the verb has made its own output is a JSON document, too.
        Output(STDOUT if "--json=-" in args else None)
        try:
            command = self.verb.load()
        except (Exception, SystemExit) as error:
            if is_own(self.verb.target):
                raise
            raise BrokenPlugin(self.verb, error) from error
        context = command.make_context(info_name, args, parent, **extra)
        _check_json_target(context)
        return context


def _check_json_target(context: Any) -> None:
    """Refuse a `--json` that names one of the verb's own inputs.

    Raises:
      typer.BadParameter: it does.
    """
    target = context.params.get("json_out")
    # `Output` refuses a motion file, input or not, by its name.
    if target is None or not os.path.isfile(target) or Path(target).suffix in MOTION_SUFFIXES:
        return
    for name, value in context.params.items():
        for entry in value if isinstance(value, list | tuple) else (value,):
            is_file = name != "json_out" and isinstance(entry, str | Path) and os.path.isfile(entry)
            if is_file and os.path.samefile(target, entry):
                text = f"{target} is an input and would be overwritten; put --json at the end, or name another file"
                raise BadParameter(text, context, param_hint="--json")


class SummaryGroup(TyperGroup):
    """A group whose help shows the summaries in full, by panel; typer cuts them to one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        width = max(map(len, self.commands))
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            summary = command.short_help or (command.help or "").partition("\n")[0]
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name.ljust(width), summary))
        for panel, rows in panels.items():
            if rows:
                with formatter.section(panel):
                    formatter.write_dl(rows)


class VerbGroup(SummaryGroup):
    """The group of every installed package's verbs."""

    def __init__(self, *, commands: Any = None, **attributes: Any) -> None:
        super().__init__(commands={**{verb.name: VerbCommand(verb) for verb in load_verbs()}, **(commands or {})}, **attributes)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            command = self.commands.get(ctx.invoked_subcommand)
            if not isinstance(command, VerbCommand):
                raise
            if not is_own(command.verb.target):
                raise BrokenPlugin(command.verb, error) from error
            package = (error.name or "").partition(".")[0]
            if not package or is_own(package) or command.verb.extra is None:
                raise
            # The API alone needs the broker's packages only where a broker is configured.
            extra = "worker" if package in ("celery", "kombu", "redis") else command.verb.extra
            raise MissingExtra(
                f"this needs the package {package!r}, which is not installed",
                remedy=f"pip install '.[{extra}]' in the checkout that ampref came from, or its wheel with [{extra}]",
            ) from error


def load_verbs() -> list[Verb]:
    """The verbs of every installed package, the product's before those of plug-ins, which cannot replace them.

    A table that cannot be loaded costs a warning and its own verbs alone.
    """
    verbs: dict[str, Verb] = {}
    owners: dict[str, str] = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: not is_own(point.value)):
        try:
            table = list(point.load())
            for row in table:
                _check_row(row)
        except (Exception, SystemExit) as error:
            sys.stderr.write(
                f"warning: the verbs of {point.name} ({point.value}) cannot be loaded: {type(error).__name__}: {error}; "
                "install it again\n"
            )
            continue
        for verb in table:
            owner = owners.setdefault(verb.name, point.name)
            if verbs.setdefault(verb.name, verb) is not verb:
                text = f"the verb {verb.name!r} of {point.name} ({point.value}) is left out, because {owner} has it already"
                sys.stderr.write(f"warning: {text}\n")
    return list(verbs.values())


def _check_row(row: object) -> None:
    """Refuse what is no row of a table, before the help or a call would trip over it.

    Raises:
      TypeError: it is no `Verb`, or one of its texts is none.
    """
    if not isinstance(row, Verb) or not all(isinstance(text, str) and text for text in row[:4]):
        raise TypeError(f"{row!r:.200} is no row with a name, a panel, a summary and a target")


def attach_json_target(args: Sequence[str], *, word: bool) -> list[str]:
    """`--json` as `--json=TARGET`, which the parser reads; a bare `--json` means stdout.

    Args:
      word: whether any word after `--json` is its target. Otherwise `-` is, and a name that ends in `.json`, but for a motion.
    """
    result: list[str] = []
    rest = list(args)
    while rest and rest[0] != "--":
        arg = rest.pop(0)
        if arg == "--json":
            next_word = rest[0] if rest else "--"
            is_name = not next_word.startswith("-")
            is_document = next_word.endswith(".json") and not is_json_motion(Path(next_word))
            is_target = next_word == "-" or (is_name and (word or is_document))
            arg = f"--json={rest.pop(0) if is_target else '-'}"
        result.append(arg)
    return result + rest
