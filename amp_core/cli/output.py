"""The one sink for everything that the command line says.

    human     results on stdout, notes and progress on stderr
    --json    one JSON document on stdout, everything else on stderr
    --quiet   on stdout only what a script needs (ids, one a line), no notes and no progress; warnings and errors are
              still printed

A verb that fails as a whole prints its error as the JSON document (`fail`).

Colours and moving progress bars appear on a terminal only; elsewhere progress is a plain line now and then.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from amp_core.errors import AmprefError
from amp_core.tiers import Tier

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and everything else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what a script needs, warnings and errors.")]

PLAIN_WIDTH = 160
SECONDS_BETWEEN_PLAIN_LINES = 5.0
_TELLING_SHARE, _TELLING_SEC = 0.02, 1.0  # from here on, the rate so far says something about the rest
_TIER_STYLES = {Tier.TIER_0: "green", Tier.TIER_1: "yellow", Tier.REJECTED: "red"}
_STATUS_STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "red", "SKIP": "dim", "WAIVED": "magenta"}


def tier_name(tier: int | None) -> str:
    """`Tier 0`, `Tier 1`, `Rejected`, or `-` where there is none yet."""
    return "-" if tier is None else Tier(tier).label


def number(value: Any, digits: int = 2) -> str:
    """A figure for a table: `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def counted(count: int, what: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def size(n_bytes: int) -> str:
    """A size that people read: `12.3 MB`."""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")


def time_left(seconds: float | None) -> str:
    """A time that is left, for people: `40 s left`; nothing where it is not known."""
    if seconds is None:
        return ""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s left"
    return f"{round(seconds / 60)} min left" if seconds < 5970 else f"{seconds / 3600:.1f} h left"


# The library and the service speak of their own parameters; whoever types a command needs its options.
_IN_OUR_WORDS = (
    (re.compile(r"\bquat_order=['\"]?(wxyz|xyzw)['\"]?"), r"--quat-order \1"),
    (re.compile(r"\bquat_order\b"), "--quat-order"),
    (re.compile(r"\bfps=([0-9.]+)"), r"--fps \1"),
    (re.compile(r"^fps\b|(?<=Leave )fps\b"), "--fps"),
    (re.compile(r"\bAMPREF_PORT\b"), "--port or AMPREF_PORT"),
    (re.compile(r"\bGET /v1/jobs/(\w+)"), r"ampref job \1 --wait"),
    (re.compile(r"\bGET /v1/clips\?tier=(\d)"), r"ampref clips --tier \1"),
    (re.compile(r"\bGET /v1/clips\b"), "ampref clips"),
    (re.compile(r"\bPOST /v1/clips/ID/rollouts\b"), "ampref clip ID --score MODE"),
)


def _in_our_words(text: str) -> str:
    for pattern, words in _IN_OUR_WORDS:
        text = pattern.sub(words, text)
    return text


def show_error(error: AmprefError, stream: IO[str] | None = None) -> None:
    """Print what was wrong, where, what was expected, and what to type next."""
    stream = sys.stderr if stream is None else stream
    places = (
        error.file,
        f"key {error.key!r}" if error.key is not None else None,
        f"frame {error.frame}" if error.frame is not None else None,
    )
    where = ", ".join(place for place in places if place)
    lines = [f"error: {where + ': ' if where else ''}{error.what}"]
    if error.expected:
        lines.append(f"  expected: {_in_our_words(error.expected)}")
    if error.remedy:
        lines.append(f"  what to do: {_in_our_words(error.remedy)}")
    stream.write("".join(_printable(line) + "\n" for line in lines))


def _printable(text: str) -> str:
    """The text without control characters: a file's name or a server's answer must not drive the terminal."""
    return "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in text)


class Output:
    """Where a verb prints to.

    Args:
      as_json: print one JSON document on stdout; human text goes to stderr then.
      quiet: print no notes, no tables and no progress.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._answered = False
        self._consoles: dict[str, Console] = {}
        global _latest
        _latest = self

    def _console(self, name: str) -> Console:
        if name not in self._consoles:
            from rich.console import Console

            stream: IO[str] = getattr(sys, name)
            width = None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
            self._consoles[name] = Console(file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=True)
        return self._consoles[name]

    @property
    def _human(self) -> Console:
        return self._console("stderr" if self.as_json else "stdout")

    def say(self, text: str = "") -> None:
        """A line that answers what was asked."""
        if not self.quiet:
            self._human.print(text)

    def note(self, text: str) -> None:
        """A line about what happens, which is no answer: always on stderr."""
        if not self.quiet:
            self._console("stderr").print(text)

    def warn(self, text: str) -> None:
        """What nobody may miss although the command goes on: always on stderr, quiet or not."""
        sys.stderr.write(f"warning: {_printable(text)}\n")

    def error(self, error: AmprefError) -> None:
        """An error that does not end the command, such as one refused file of several."""
        show_error(error)

    def document(self, document: Any) -> None:
        """The JSON document, if one was asked for."""
        if self.as_json:
            self._answered = True
            sys.stdout.write(dumps(document))

    def fail(self, error: AmprefError) -> None:
        """The error that ends the command: for people and, if JSON was asked for and none is printed yet, as the document."""
        show_error(error)
        if not self._answered:
            self.document(error.to_dict())

    def values(self, values: Iterable[str]) -> None:
        """What a script needs, one a line, if that alone was asked for."""
        if self.quiet and not self.as_json:
            sys.stdout.write("".join(f"{value}\n" for value in values))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
        """A table. A column named `>x` is right-aligned under the heading `x`; a tier's or a test's status is coloured."""
        if self.quiet:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
        styles = _STATUS_STYLES | {tier.label: style for tier, style in _TIER_STYLES.items()}
        for row in rows:
            cells = ["-" if cell is None else _printable(str(cell)) for cell in row]
            table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in cells))
        self._human.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, description: str, total: float | None = None) -> Iterator[Progress]:
        """A progress bar on a terminal, a line every few seconds elsewhere, nothing when quiet."""
        if self.quiet:
            yield Progress(description, total)
        elif self._console("stderr").is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
            )
            with Bar(*columns, console=self._console("stderr"), transient=True) as bar:
                yield _BarProgress(bar, description, total)
        else:
            yield _LineProgress(self, description, total)


_latest: Output | None = None
"""What the running verb prints to, for whoever catches its error."""


def fail(error: AmprefError) -> None:
    """`Output.fail` of the running verb; plain `show_error` where none had begun."""
    if _latest is None:
        show_error(error)
    else:
        _latest.fail(error)


def forget_output() -> None:
    """Let the next command begin anew."""
    global _latest
    _latest = None


class Progress:
    """How far long work has come; this one shows nothing.

    Args:
      description: what is being done.
      total: the amount that is the whole, or None while it is not known.
    """

    def __init__(self, description: str, total: float | None) -> None:
        self.description = description
        self.total = total
        self.done = 0.0
        self._began = time.monotonic()
        self._left: float | None = None

    def update(
        self,
        done: float | None = None,
        *,
        description: str | None = None,
        total: float | None = None,
        left: float | None = None,
    ) -> None:
        """Report the amount done so far; thread-safe enough for one reporter at a time.

        `left` is the time in seconds that the rest takes, from who knows better than the rate so far.
        """
        self.done = self.done if done is None else done
        self.description = description or self.description
        self.total = self.total if total is None else total
        self._left = left
        self._show()

    def left(self) -> float | None:
        """s that the rest takes, as far as can be told: by what was reported, or by the rate since the beginning."""
        if self._left is not None:
            return self._left
        elapsed = time.monotonic() - self._began
        share = self.done / self.total if self.total else 0.0
        if not _TELLING_SHARE <= share < 1.0 or elapsed < _TELLING_SEC:
            return None
        return elapsed * (1.0 - share) / share

    def _show(self) -> None:
        pass


class _BarProgress(Progress):
    def __init__(self, bar: Any, description: str, total: float | None) -> None:
        super().__init__(description, total)
        self._bar = bar
        self._task = bar.add_task(description, total=total, left="")

    def _show(self) -> None:
        left = time_left(self.left())
        self._bar.update(self._task, completed=self.done, description=self.description, total=self.total, left=left)


class _LineProgress(Progress):
    def __init__(self, output: Output, description: str, total: float | None) -> None:
        super().__init__(description, total)
        self._output = output
        self._last = time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_PLAIN_LINES:
            self._last = now
            share = f"{100 * self.done / self.total:3.0f}%  " if self.total else ""
            left = time_left(self.left())
            self._output.note(f"{share}{self.description}" + (f", {left}" if left else ""))


def dumps(document: Any) -> str:
    """Strict JSON (no NaN), readable, with a final newline."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
