"""The joint names that a motion file carries, and which of a robot's joints they mean."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amp_core.errors import MotionRefused
from amp_core.formats.values import RawArray, describe, quote

__all__ = [
    "FREE_JOINT",
    "MAX_NAMES",
    "MAX_NAME_CHARACTERS",
    "NAME_KEYS",
    "ROOT_COLUMNS",
    "count_joints",
    "find_joint_names",
    "join_names",
    "match_joint_names",
    "parse_names",
    "refuse_difference",
    "split_words",
    "strip_generic_names",
]

NAME_KEYS = ("joint_names", "dof_names", "joints_list", "joint_order")
"""The keys under which the field's tools write the order of the joint columns."""

ROOT_COLUMNS = 7
"""A position and a quaternion."""
MAX_NAMES = 256
MAX_NAME_CHARACTERS = 200
_LISTED_NAMES = 40

_TEXT_DTYPE = re.compile(r"([<>|=]?)([US])(\d{1,4})")
FREE_JOINT = re.compile(r"free|root|float|base|pelvis|world", re.IGNORECASE)
# Columns that are only numbered say nothing about the order.
_GENERIC = re.compile(r"(?:joint|dof|q|j|c|col|column|angle|joint_pos|dof_pos)?[ _.]?\d*", re.IGNORECASE)
# Words around a joint's name that do not tell joints apart.
_DECORATIONS = frozenset(["joint", "jnt", "dof", "pos", "position", "angle", "q", "qpos", "rad", "motor", "actuator", "servo"])
_SIDES = {"l": "left", "r": "right"}
_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def find_joint_names(
    fields: Mapping[str, Any], num_columns: int, other_lists: Mapping[str, Sequence[str]]
) -> tuple[str, ...] | None:
    """The names of the joint columns in a file's fields, in the file's order; None where it does not name them.

    Names are a list or an array of text or bytes, under one of `NAME_KEYS`. One name more than there are columns is
    permitted where the first is the root's free joint. Two lists agree if they do so by `match_joint_names`.

    Args:
      other_lists: by key, the other lists of texts in the file (`find_name_lists`); the same joints in another order there
        are a contradiction.

    Raises:
      MotionRefused: names that are no text, that repeat, that are not as many as the columns, or two keys that disagree.
    """
    candidates: dict[str, tuple[str, ...]] = {}
    for key in NAME_KEYS:
        names = parse_names(key, fields.get(key))
        if not names:
            continue
        if len(names) == num_columns + 1 and FREE_JOINT.search(names[0]):
            names = names[1:]
        candidates[key] = names
    matches = {key: names for key, names in candidates.items() if len(names) == num_columns}
    if candidates and not matches:
        key, names = next(iter(candidates.items()))
        has_root = num_columns == len(names) + ROOT_COLUMNS
        raise MotionRefused(
            f"it has {len(names)} names, dof_pos has {num_columns} columns",
            key=key,
            expected="one name for each column of dof_pos",
            remedy="Leave the root's pose out: dof_pos = dof_pos[:, 7:]"
            if has_root
            else f"Write the names of the columns, or leave {key} out",
        )
    first_key = next(iter(matches), None)
    for key, names in matches.items():
        assert first_key is not None
        if len(set(names)) < len(names):
            name = next(name for name in names if names.count(name) > 1)
            raise MotionRefused(
                f"{quote(name, 40)} appears twice",
                key=key,
                expected="each joint once",
                remedy=f"Correct {key}, or leave it out",
            )
        if names != matches[first_key] and match_joint_names(names, matches[first_key]) != list(range(num_columns)):
            raise refuse_difference(first_key, matches[first_key], key, names)
    first = None if first_key is None else strip_generic_names(matches[first_key])
    if first_key is None or first is None:
        return None
    for key, names in ((key, tuple(names)) for key, names in other_lists.items() if len(names) == num_columns):
        # Texts of something else match no joint's name; the same joints in another order are a contradiction.
        if match_joint_names(names, first) not in (None, list(range(num_columns))):
            raise refuse_difference(first_key, first, key, names)
    return first


def refuse_difference(
    first_key: str, first: Sequence[str], key: str, names: Sequence[str], file: str | None = None
) -> MotionRefused:
    """The refusal of two lists that name the same columns in different orders."""
    return MotionRefused(
        f"{first_key} and {key} name the columns differently: {join_names(first)}, and {join_names(names)}",
        file=file,
        key=key,
        expected="one order of the joint columns",
        remedy="Leave out the list that is wrong",
    )


def strip_generic_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """The names, or None where they only number the columns (`joint_0, joint_1, …`) or are empty."""
    return None if all(_GENERIC.fullmatch(name.strip()) for name in names) else tuple(names)


def parse_names(key: str, value: object) -> tuple[str, ...]:
    """The texts of a list, a tuple, an array of text, or one text with commas or spaces between; empty for None."""
    if value is None:
        return ()
    texts: list[str | None]
    if isinstance(value, RawArray) and value.items is None:
        texts = list(_split_text_array(value))
    else:
        items = value.items if isinstance(value, RawArray) else value
        if isinstance(items, list | tuple) and len(items) == 1 and isinstance(items[0], list | tuple):
            items = items[0]
        texts = [_text_of(item) for item in items[: MAX_NAMES + 1]] if isinstance(items, list | tuple) else [_text_of(items)]
    if len(texts) == 1 and texts[0] is not None and re.search(r"[,;\s]", texts[0].strip()):
        text = texts[0].strip(" ,;\t\r\n")
        texts = [*re.split(r"[,;]+" if re.search("[,;]", text) else r"\s+", text)]
    names = [text.strip() for text in texts if text is not None]
    if (
        not texts
        or len(names) < len(texts)
        or len(texts) > MAX_NAMES
        or any(not 0 < len(n) <= MAX_NAME_CHARACTERS for n in names)
    ):
        if isinstance(value, list | tuple) and not value:
            return ()
        raise MotionRefused(
            f"it is {describe(value)}" if not names else f"it is no list of names: {quote(names[0], 40)}, …",
            key=key,
            expected="a list of the joints' names, one for each column of dof_pos",
            remedy=f"Write plain text names, or leave {key} out",
        )
    return tuple(names)


def _text_of(item: object) -> str | None:
    """The text of one name: `str`, bytes, or a numpy text of no dimensions."""
    if isinstance(item, bytes | bytearray):
        item = bytes(item[: 4 * MAX_NAME_CHARACTERS + 1]).decode("utf-8", errors="replace")
    if isinstance(item, RawArray):
        texts = _split_text_array(item)
        return texts[0] if len(texts) == 1 and item.shape == () else None
    if not isinstance(item, str) or len(item) > MAX_NAMES * MAX_NAME_CHARACTERS:
        return None
    if not item.isascii():
        # The JSON reader decodes as Latin-1 (`read_json_clip`); text that is no UTF-8 in Latin-1 is what it says.
        with contextlib.suppress(UnicodeError):
            item = item.encode("latin-1").decode("utf-8")
    return item


def _split_text_array(array: RawArray) -> list[str | None]:
    """The texts of a fixed-width array of up to two dimensions; `[None]` for anything else."""
    match = _TEXT_DTYPE.fullmatch(array.dtype)
    count = 1
    for size in array.shape:
        count *= size
    if match is None or array.data is None or count > MAX_NAMES or sum(size != 1 for size in array.shape) > 1:
        return [None]
    order, kind, characters = match[1], match[2], int(match[3])
    width = characters * (4 if kind == "U" else 1)
    if width * count != len(array.data) or width > 4 * 4 * MAX_NAME_CHARACTERS:
        return [None]
    encoding = "utf-8" if kind == "S" else "utf-32-be" if order == ">" else "utf-32-le"
    cells = (bytes(array.data[start : start + width]) for start in range(0, width * count, width)) if width else ()
    return [cell.decode(encoding, errors="replace").rstrip("\0") for cell in cells]


def join_names(names: Sequence[str]) -> str:
    """A list of names for an error: ASCII, each shortened, no more than 40 of them."""
    texts = [quote(name, 40).strip("'") for name in names[:_LISTED_NAMES]]
    return ", ".join(texts) + (f", … ({len(names)} names)" if len(names) > _LISTED_NAMES else "")


def match_joint_names(names: Sequence[str], joints: Sequence[str]) -> list[int] | None:
    """For each of a robot's joints the place of its name in `names`; None where a joint has no name there.

    Names are compared as they are, then without case and separators, then without words such as `joint` and `dof`, then
    without what all of them begin or end with, and at last with the words in any order and `l` and `r` for the sides. The
    first comparison under which all names stay distinct and every joint has one decides.
    """
    for compare in _COMPARISONS:
        places = {key: place for place, key in enumerate(compare(names))}
        expected = compare(joints)
        if len(places) == len(names) and len(set(expected)) == len(joints) and all(key in places for key in expected):
            return [places[key] for key in expected]
    return None


def count_joints(names: Sequence[str], joints: Sequence[str]) -> int:
    """How many of a list's names are a joint's, by the comparison of `match_joint_names` that recognizes the most."""
    keys = ((compare(names), set(compare(joints))) for compare in _COMPARISONS)
    return max(sum(key in of_joints for key in of_names) for of_names, of_joints in keys)


def split_words(name: str) -> list[str]:
    """`LHipPitch_joint` as `l, hip, pitch, joint`."""
    return [word for word in re.split(r"[\W_]+", _WORD_BREAK.sub("_", name).casefold()) if word]


def _words(name: str) -> tuple[str, ...]:
    """The words of a name without those that do not tell joints apart."""
    words = split_words(name)
    return tuple(word for word in words if word not in _DECORATIONS) or tuple(words)


def _strip_common(names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The words of each name without those that all names begin or end with; a name keeps one word at least."""
    for end in (0, -1):
        while len(names) > 1 and all(len(words) > 1 for words in names) and len({words[end] for words in names}) == 1:
            names = [words[1:] if end == 0 else words[:-1] for words in names]
    return names


_COMPARISONS: tuple[Callable[[Sequence[str]], list[tuple[str, ...]]], ...] = (
    lambda items: [(item,) for item in items],
    lambda items: [("".join(char for char in item.casefold() if char.isalnum()),) for item in items],
    lambda items: [_words(item) for item in items],
    lambda items: _strip_common([_words(item) for item in items]),
    lambda items: [
        tuple(sorted(_SIDES.get(word, word) for word in words)) for words in _strip_common([_words(item) for item in items])
    ],
)
