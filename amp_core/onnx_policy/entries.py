"""Values of an observation spec, read with the key that a refusal names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from amp_core.errors import PolicyRefused
from amp_core.strict_yaml import describe_yaml, quote

__all__ = ["DOCS", "MAX_NAMES", "Entry", "suggest_name"]

DOCS = "docs/tracking-policies.md"
MAX_NAMES = 256
_PATTERN = re.compile(r"(?:[\w\-/()|]|\.\*|\.){1,120}")


def suggest_name(name: str, known_names: Iterable[str]) -> str:
    """`did you mean 'joint_vel'? ` where a known name is near, else nothing; and the known names."""
    names = list(known_names)
    nearest = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    listing = ", ".join(names[:64])
    return f"{hint}There are: {listing}{', …' if len(names) > 64 else ''}"


@dataclass(frozen=True)
class Entry:
    """A value of the file, and where it stands: `observation[2].scale`."""

    value: Any
    key: str
    file: str

    def refuse(self, what: str, expected: str | None = None, remedy: str | None = None) -> NoReturn:
        """Raise a `PolicyRefused` that names the key."""
        raise PolicyRefused(what, file=self.file, key=self.key or None, expected=expected, remedy=remedy or f"See {DOCS}")

    def mapping(self, known_keys: Collection[str], mandatory: Sequence[str] = ()) -> dict[str, Entry]:
        """The entries of a mapping, none of them unknown and all of the mandatory ones there."""
        if not isinstance(self.value, dict):
            self.refuse(f"it is {describe_yaml(self.value)}", f"keys and values, such as {', '.join(known_keys)}")
        prefix = f"{self.key}." if self.key else ""
        entries = {str(key): Entry(value, f"{prefix}{key}"[:200], self.file) for key, value in self.value.items()}
        for key, entry in entries.items():
            if key not in known_keys:
                entry.refuse(f"unknown key {quote(key)}", suggest_name(key, known_keys), "Correct or remove it")
        for key in mandatory:
            if key not in entries:
                self.refuse(f"the key {key!r} is missing", f"at least: {', '.join(mandatory)}")
        return entries

    def items(self, expected: str, most: int = MAX_NAMES) -> list[Entry]:
        """The entries of a list."""
        if not isinstance(self.value, list) or not 0 < len(self.value) <= most:
            self.refuse(f"it is {describe_yaml(self.value)}", f"{expected}, 1 to {most} of them")
        return [Entry(value, f"{self.key}[{index}]", self.file) for index, value in enumerate(self.value)]

    def text(self, expected: str = "a name (quote it if it looks like a number)") -> str:
        if not isinstance(self.value, str) or not 0 < len(self.value) <= 200 or "\0" in self.value:
            self.refuse(f"it is {describe_yaml(self.value)}", expected)
        return str(self.value)

    def choice(self, choices: Collection[str]) -> str:
        text = self.text(f"one of: {', '.join(choices)}")
        if text not in choices:
            self.refuse(f"it is {quote(text)}", suggest_name(text, choices))
        return text

    def number(self, low: float = -1e6, high: float = 1e6) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not low <= self.value <= high:
            self.refuse(f"it is {describe_yaml(self.value)}", f"a number from {low:g} to {high:g} (YAML reads 2e-2 as text)")
        return float(self.value)

    def integer(self, low: int, high: int) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            self.refuse(f"it is {describe_yaml(self.value)}", f"a whole number from {low} to {high}")
        return int(self.value)

    def numbers(self, most: int = 4096) -> tuple[float, ...]:
        return tuple(entry.number() for entry in self.items("a list of numbers", most))

    def interval(self) -> tuple[float, float]:
        if not isinstance(self.value, list) or len(self.value) != 2:
            self.refuse(f"it is {describe_yaml(self.value)}", "[low, high]")
        low, high = self.numbers()
        if not low < high:
            self.refuse(f"it is [{low:g}, {high:g}]", "[low, high] with low < high")
        return low, high

    def names(self) -> tuple[str, ...]:
        names = tuple(entry.text() for entry in self.items("a list of names"))
        for index, name in enumerate(names):
            if name in names[:index]:
                self.refuse(f"{quote(name)} appears twice", "each name once")
        return names

    def values_by_joint(self, joints: Sequence[str]) -> tuple[float, ...]:
        """A value a joint: one number for all, a list in the joints' order, or patterns of names with a number each.

        A pattern stands for whole names: `.*` for any characters, `|` for or. Each joint needs a value, of one pattern alone.
        """
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            return (self.number(),) * len(joints)
        if isinstance(self.value, list):
            numbers = self.numbers()
            if len(numbers) != len(joints):
                self.refuse(f"it has {len(numbers)} numbers for {len(joints)} joints", "one a joint, in the order of `joints`")
            return numbers
        if not isinstance(self.value, dict) or not 0 < len(self.value) <= MAX_NAMES:
            self.refuse(f"it is {describe_yaml(self.value)}", "a number, a list with one a joint, or patterns of joint names")
        values: dict[str, float] = {}
        for pattern, value in self.value.items():
            entry = Entry(value, f"{self.key}.{pattern}"[:200], self.file)
            matches = entry.match_names(str(pattern), joints)
            for joint in matches:
                if joint in values:
                    entry.refuse(f"the joint {joint!r} has a value from another pattern already", "one pattern a joint")
                values[joint] = entry.number()
        missing = [joint for joint in joints if joint not in values]
        if missing:
            self.refuse(f"{len(missing)} joints have no value, the first is {missing[0]!r}", "a value for each joint")
        return tuple(values[joint] for joint in joints)

    def match_names(self, pattern: str, names: Sequence[str]) -> list[str]:
        """The names that a pattern matches as a whole, in their order."""
        if not _PATTERN.fullmatch(pattern) or max(part.count("*") for part in pattern.split("|")) > 4:
            # Only repetition of any character: what a regular expression can do else may take for ever.
            self.refuse(f"{quote(pattern)} is no pattern of names", "names, `.*` for any characters, `|` for or, and brackets")
        try:
            expression = re.compile(pattern)
        except re.error as error:
            self.refuse(f"{quote(pattern)} is no pattern of names: {error}", "a pattern such as .*_knee_joint")
        matches = [name for name in names if expression.fullmatch(name)]
        if not matches:
            self.refuse(f"{quote(pattern)} matches no name", suggest_name(pattern, names))
        return matches
