"""The results file of `bench.corpus`: JSON lines that survive an end at any moment, for one run at a time.

The first line holds the settings, and only runs with these settings go on with the file. Each run adds a line `session`, and
each window that it finishes a line `window`, which is on the disk before the next one begins. A last line without its line end
was being written when the run ended; it is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from amp_core.commands import quote_path
from amp_core.errors import Conflict, InputRefused
from amp_core.files import sync_folder
from amp_core.strict_json import format_json

FORMAT = 1

Key = tuple[str, int | None, int | None, str, str]
"""What a line is about: digest (or name) of the file, first and last frame, digest of the recipe, digest of the robot."""


def key_of(line: Mapping[str, Any]) -> Key:
    first, last = line["frames"] or (None, None)
    return line["source_digest"] or line["file"], first, last, line["recipe_digest"], line["robot_digest"]


@dataclass
class Results:
    """The contents of a results file.

    Args:
      settings: of every run; empty where the file is new.
      sessions: a line for each run.
      windows: the newest line of each window, in the order of the file.
      size: bytes up to the end of the last whole line.
      torn: bytes behind it.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    windows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    size: int = 0
    torn: int = 0

    @classmethod
    def read(cls, path: Path) -> Results:
        """The results in a file.

        Raises:
          InputRefused: it cannot be read, or is no results file.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputRefused(
                f"cannot be read: {error.strerror or error}",
                file=str(path),
                expected="a results file of bench.corpus",
                remedy=f"Check: ls -l {quote_path(path)}",
            ) from error
        size = data.rfind(b"\n") + 1
        results = cls(size=size, torn=len(data) - size)
        for number, text in enumerate(data[:size].splitlines(), 1):
            try:
                results._add(json.loads(text), is_first=number == 1)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputRefused(
                    f"line {number} is not one that bench.corpus writes",
                    file=str(path),
                    expected="a results file of bench.corpus",
                    remedy="Give --out a new file, or take that line out",
                ) from error
        return results

    def _add(self, line: dict[str, Any], *, is_first: bool) -> None:
        if is_first:
            if line["kind"] != "settings" or line["format"] != FORMAT:
                raise ValueError("the first line does not hold the settings")
            self.settings = line["settings"]
        elif line["kind"] == "session":
            self.sessions.append(line)
        elif line["status"] in ("scored", "refused", "failed"):
            self.windows[key_of(line)] = line
        else:
            raise ValueError("an unknown status")


class ResultsFile:
    """A results file that a run writes to, which no other run can write to meanwhile; a context manager.

    Args:
      settings: everything that decides the results.

    Raises:
      Conflict: another run writes to it, or it holds the results of other settings.
      InputRefused: it cannot be used.

    Attributes:
      results: what is in it.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputRefused(
                f"cannot be written: {error.strerror or error}",
                file=str(path),
                expected="a file for the results",
                remedy=f"Check: ls -ld {quote_path(path.parent)}, or give --out another file",
            ) from error
        try:
            self._lock()
            self.results = Results.read(path)
            if self.results.torn:
                os.ftruncate(self._descriptor, self.results.size)
            if self.results.settings:
                self._check(settings)
            else:
                self.append({"kind": "settings", "format": FORMAT, "settings": settings})
                sync_folder(path.parent)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line, which is on the disk when this returns."""
        data = format_json(line).encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)
        self.results._add(dict(line), is_first=line["kind"] == "settings")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(
                "another run writes to it",
                file=str(self.path),
                expected="one run at a time in a file",
                remedy="Wait for that run, or give --out another file",
            ) from error

    def _check(self, settings: dict[str, Any]) -> None:
        """Refuse to go on with the results of other settings, which could not be counted together."""
        if self.results.settings == settings:
            return
        differences = list(describe_differences(self.results.settings, settings))
        raise Conflict(
            f"it holds results of other settings: {'; '.join(differences)}",
            file=str(self.path),
            expected="the settings of the first run in it",
            remedy="Give these settings a file of their own with --out, or repeat the first run's",
        )


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The settings that two runs do not have in common, such as `recipe.seed is 0 there and 1 here`."""
    for key in sorted(old.keys() | new.keys()):
        old_value, new_value = old.get(key), new.get(key)
        if isinstance(old_value, Mapping) and isinstance(new_value, Mapping):
            yield from describe_differences(old_value, new_value, f"{prefix}{key}.")
        elif old_value != new_value and key != "recipe_digest":
            texts = [format_json(value) for value in (old_value, new_value)]
            yield f"{prefix}{key} is {texts[0]:.80} there and {texts[1]:.80} here"
