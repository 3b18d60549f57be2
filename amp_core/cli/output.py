"""Where the command prints to.

    human        results on stdout, notes and progress on stderr
    --json       one JSON document on stdout, everything else on stderr
    --json=FILE  the same document in FILE; for people as without --json
    --quiet      on stdout only what a script needs (ids, one a line), no notes and no progress; warnings and errors are
                 still printed

A verb that fails as a whole prints its error as the JSON document on stdout (`fail`); it writes no file.

Colours and moving progress bars appear on a terminal only; elsewhere progress is a plain line now and then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import typer

from amp_core.cli.exit_codes import FAILED
from amp_core.cli.progress import Progress, line_printer
from amp_core.cli.targets import check_file, refuse_unwritable
from amp_core.cli.text import printable, time_left
from amp_core.commands import fill_command
from amp_core.errors import AmprefError, name_key
from amp_core.files import write_file
from amp_core.strict_json import format_json
from amp_core.tiers import Tier

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 160
_OPTIONS = {"tags": "tag", "clips": "clip", "kinds": "kind", "buckets": "bucket", "waivers": "waive", "gate_profile": "profile"}
"""Options that are not called as the field of the request."""
STDOUT = Path("-")
Cell = str | Callable[[Any], Any]
"""What a column shows of a row: the value of a key, or what a function makes of the row."""
_STYLES = {
    **{"PASS": "green", "WARN": "yellow", "FAIL": "red", "SKIP": "dim", "WAIVED": "magenta"},
    **{Tier.TIER_0.label: "green", Tier.TIER_1.label: "yellow", Tier.REJECTED.label: "red"},
}


def argument_name(key: str) -> str:
    """The argument or option that a key of a request stands for, such as `VERSION` for `body.version`; else the key.

    A selection as a whole has no name: its options are in what is said of it.
    """
    if key in ("select", "body.select"):
        return ""
    place, *path = (part for part in key.split(".") if not part.isdigit())
    if place not in ("path", "query", "body", "select") or not path:
        return name_key(key)
    if path[0] == "recipe":
        return " ".join(("--recipe", ".".join(path[1:]))).rstrip()
    name = path[-1]
    if place == "path" or key == "body.version":
        return "ID" if name.endswith("_id") else name.upper()
    side, _, metric = name.partition("_")
    if side in ("min", "max") and name != "min_duration_sec":
        return f"--{side} {metric}"
    return "--" + _OPTIONS.get(name, name).replace("_", "-")


def print_error(error: AmprefError) -> None:
    """Print on stderr what was wrong, where, what was expected, and what to type next."""
    key = argument_name(error.key) if error.key is not None else None
    frame = f"frame {error.frame}" if error.frame is not None else None
    place = ", ".join(filter(None, (error.file, key, frame)))
    lines = [f"error: {place + ': ' if place else ''}{error.what}"]
    remedy = (error.remedy or "").replace("/docs says of it: ", "").replace("See /docs for", "See --help for")
    for label, text in (("expected", error.expected), ("what to do", remedy)):
        if text:
            lines.append(f"  {label}: {text}")
    sys.stderr.write("".join(printable(line) + "\n" for line in lines))


class Output:
    """Where a verb prints to.

    Args:
      json_target: `-` for one JSON document on stdout, human text going to stderr; a file for the document; None for none.
      quiet: print no notes, no tables and no progress.

    Raises:
      InputRefused: the file cannot be written, which is known before any work is done.

    Attributes:
      latest: the output of the running verb, for the place that catches its error.
    """

    latest: ClassVar[Output | None] = None

    def __init__(self, json_target: Path | None = None, *, quiet: bool = False) -> None:
        self.to_stdout = json_target == STDOUT
        self.file = None if self.to_stdout else json_target
        self.quiet = quiet
        self.refusals: list[AmprefError] = []
        self._has_document = False
        self._consoles: dict[IO[str], Console] = {}
        Output.latest = self
        if self.file is not None:
            check_file(self.file)

    def _console(self, *, for_notes: bool) -> Console:
        stream = sys.stderr if for_notes or self.to_stdout else sys.stdout
        if stream not in self._consoles:
            from rich.console import Console  # noqa: PLC0415 - Slower than the rest of the command; a short answer goes without.

            width = None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
            self._consoles[stream] = Console(
                file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=True
            )
        return self._consoles[stream]

    def print(self, text: str = "") -> None:
        """Print a line of the result for people."""
        if not self.quiet:
            self._console(for_notes=False).print(text)

    def note(self, text: str) -> None:
        """Print a line about what happens, which is no result: always on stderr."""
        if not self.quiet:
            self._console(for_notes=True).print(text)

    def warn(self, text: str) -> None:
        """Print what nobody may miss although the command goes on: always on stderr, quiet or not."""
        sys.stderr.write(f"warning: {printable(text)}\n")

    def refuse(self, error: AmprefError) -> None:
        """Print an error that does not end the command, such as one refused file of several; `exit` ends it with 1."""
        print_error(error)
        self.refusals.append(error)

    @contextmanager
    def refusing(self, file: Path | None = None) -> Iterator[None]:
        """Refuse what the block raises, instead of ending the command; a service that is gone or full ends it, and a quota.

        Args:
          file: the file that the block is about.
        """
        try:
            yield
        except AmprefError as error:
            if error.slug in ("unavailable", "busy", "quota"):
                raise
            if file is not None:
                error.file, error.remedy = str(file), fill_command(error.remedy, file)
            self.refuse(error)

    def exit(self, *, failed: bool = False) -> None:
        """End the verb with exit code 1 if it failed or something was refused.

        Raises:
          typer.Exit: it was.
        """
        if failed or self.refusals:
            raise typer.Exit(FAILED)

    def print_result(self, document: Any, values: Iterable[str] = ()) -> None:
        """Print or write the JSON document if one was asked for, and print the values if they alone were.

        Args:
          values: what a script needs, one a line.
        """
        if self.to_stdout:
            self._has_document = True
            sys.stdout.write(dumps(document))
            return
        if self.file is not None:
            with refuse_unwritable(self.file):
                write_file(self.file, dumps(document).encode(), durable=True)
        if self.quiet:
            sys.stdout.write("".join(f"{value}\n" for value in values))

    def fail(self, error: AmprefError) -> None:
        """Print the error that ends the command: for people and, if stdout is to have a document and has none, as that."""
        print_error(error)
        if self.to_stdout and not self._has_document:
            self.print_result(error.to_dict())

    def print_table(self, columns: Sequence[str] | Mapping[str, Cell], rows: Iterable[Any]) -> None:
        """Print a table. A column named `>x` is right-aligned under the heading `x`; tiers and tests' statuses are coloured.

        Args:
          columns: the headings, and the rows have a cell for each; or what each heading shows of a row that is an object.
        """
        if self.quiet:
            return
        if isinstance(columns, Mapping):
            rows = [[cell(row) if callable(cell) else row[cell] for cell in columns.values()] for row in rows]
        from rich import box  # noqa: PLC0415 - as above.
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
        for row in rows:
            cells = ["-" if cell is None else printable(str(cell)) for cell in row]
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
        self._console(for_notes=False).print(table, soft_wrap=False)

    @contextmanager
    def progress(self, description: str, total: float | None = None) -> Iterator[Progress]:
        """Show progress: a bar on a terminal, a line every few seconds elsewhere, nothing when quiet."""
        if self.quiet:
            yield Progress(description, total)
        elif self._console(for_notes=True).is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - as above.
            from rich.progress import Progress as Bar  # noqa: PLC0415

            texts = [TextColumn(text) for text in ("{task.description}", "{task.percentage:>3.0f}%", "{task.fields[left]}")]
            columns = (texts[0], BarColumn(), texts[1], TimeElapsedColumn(), texts[2])
            with Bar(*columns, console=self._console(for_notes=True), transient=True) as bar:
                task = bar.add_task(description, total=total, left="")

                def show(state: Progress) -> None:
                    left = time_left(state.left())
                    bar.update(task, completed=state.amount, description=state.description, total=state.total, left=left)

                yield Progress(description, total, show)
        else:
            yield Progress(description, total, line_printer(self.note))


def dumps(document: Any) -> str:
    """Strict JSON (no NaN), readable, with a final newline."""
    return format_json(document, indent=2, default=str) + "\n"
