"""Lists of texts under any key of a motion file, which may be the names of its joint columns.

Whether they are is told by a robot's joints (`motion.joint_order`); here they are only collected, within bounds.
"""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from amp_core.errors import MotionRefused
from amp_core.formats.joint_names import (
    FREE_JOINT,
    MAX_NAME_CHARACTERS,
    MAX_NAMES,
    ROOT_COLUMNS,
    parse_names,
    split_words,
    strip_generic_names,
)
from amp_core.formats.values import PickledDict, RawArray, quote
from amp_core.strict_json import parse_json

__all__ = ["COMMENTS_KEY", "NAME_LISTS_KEY", "find_name_lists", "is_joint_key"]

NAME_LISTS_KEY = "name_lists"
"""The member under which a part of a clip keeps the lists of its file, as JSON; it is no part of their keys."""

COMMENTS_KEY = "comments"
"""The key of the comments of a text."""

MAX_VALUES = 4096
MAX_LEVELS = 5
MAX_TEXT_CHARACTERS, MAX_CHARACTERS = 256 * 1024, 1024 * 1024
MAX_KEY_CHARACTERS = 60
MAX_LISTS = 256

_TEXT_DTYPE = re.compile(r"([<>|=]?)([US])\d{1,6}")
# `joints`, `jointNames`, `dof_joint_names`, `motor_names`: lists that say what the columns are, and nothing else.
_JOINT_KEY = re.compile(
    r"(?:robot|dof|all|mujoco|isaac|lab|gym|sim)*(?:joint|dof|motor|actuator|servo)s?(?:pos)?(?:name|order|label|list|column)*s?"
)
_JOINT_WORDS = re.compile(r"(?:joint|dof|motor|actuator|servo)s?")
_BODY_WORDS = re.compile(r"(?:body|bodie|link|geom|site|node|bone|marker|keypoint|sensor)s?")
_BODY_ENDINGS = ("link", "body")


def find_name_lists(fields: Mapping[str, Any], num_columns: int) -> dict[str, tuple[str, ...]]:
    """Lists of texts by their keys (`meta.joint_names` for one in a dictionary) that could name the joint columns.

    A list may be a list or an array of text, one text with commas or spaces between, the names in a dictionary of names and
    places, or the `name` of each of several dictionaries; it may lie in dictionaries, in lists and in JSON text. Lists of other
    things than joints by their key (`body_names`) or their texts (`…_link`), lists that only number the columns, and those of
    another length are left out; the last only where the key does not say that they are the joints' names (`is_joint_key`), and
    not in comments, where a header may have other columns.
    """
    lists: dict[str, tuple[str, ...]] = {}
    for path, texts in _walk(fields):
        if len(texts) == num_columns + 1 and FREE_JOINT.search(texts[0]):
            texts = texts[1:]
        elif len(texts) == num_columns + ROOT_COLUMNS:
            texts = texts[ROOT_COLUMNS:]
        names = strip_generic_names(texts)
        words = split_words(path.rpartition(".")[2])
        is_body_key = any(map(_BODY_WORDS.fullmatch, words)) and not any(map(_JOINT_WORDS.fullmatch, words))
        is_other = is_body_key or all(text.lower().endswith(_BODY_ENDINGS) for text in texts)
        may_differ = is_joint_key(path) or path.startswith(f"{COMMENTS_KEY}.")
        if names is not None and not is_other and (may_differ or len(names) == num_columns) and len(lists) < MAX_LISTS:
            key = quote(path.removeprefix(NAME_LISTS_KEY + "."), MAX_KEY_CHARACTERS).strip("'\"")
            lists.setdefault(key, names)
    return lists


def is_joint_key(path: str) -> bool:
    """Whether a key says that what it holds are the joints' names."""
    return _JOINT_KEY.fullmatch("".join(split_words(path.rpartition(".")[2]))) is not None


def _walk(fields: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The lists of texts in a file's fields with their keys, those of the first level first."""
    queue: deque[tuple[str, object, int]] = deque(
        (key[:MAX_NAMES], value, 0) for key, value in islice(fields.items(), MAX_VALUES)
    )
    characters = MAX_CHARACTERS
    for _ in range(MAX_VALUES):
        if not queue:
            return
        path, value, level = queue.popleft()
        value = _decode(value)
        # One text may be in a pickle a thousand times.
        characters -= len(value) if isinstance(value, str) else 0
        if characters < 0:
            return
        value = _open(value)
        texts = _read_texts(value)
        if len(texts) > 1:
            yield path, texts
        elif level < MAX_LEVELS and len(queue) < MAX_VALUES:
            if isinstance(value, dict):
                queue.extend((f"{path}.{key[:MAX_NAMES]}", item, level + 1) for key, item in islice(value.items(), MAX_NAMES))
            elif isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
                queue.extend((path, item, level + 1) for item in value[:MAX_NAMES])


def _decode(value: object) -> object:
    """The text of bytes and of an array that holds one text or a text's bytes; everything else as it is."""
    if isinstance(value, RawArray) and value.data is not None and len(value.data) <= 4 * MAX_TEXT_CHARACTERS:
        data, match = bytes(value.data), _TEXT_DTYPE.fullmatch(value.dtype)
        if value.dtype == "|u1" and len(value.shape) == 1 and data[:1] in (b"{", b"["):
            return data.decode("utf-8", errors="replace")
        if match is not None and all(size == 1 for size in value.shape):
            encoding = "utf-8" if match[2] == "S" else "utf-32-be" if match[1] == ">" else "utf-32-le"
            return data.decode(encoding, errors="replace").rstrip("\0")
    if isinstance(value, bytes | bytearray) and len(value) <= 4 * MAX_TEXT_CHARACTERS:
        value = bytes(value).decode("utf-8", errors="replace")
    return value


def _open(value: object) -> object:
    """The dictionary or the list in a pickle's dictionary, in an object array and in JSON text; everything else as it is."""
    if isinstance(value, RawArray) and value.items is not None:
        value = value.items[0] if value.shape == () and len(value.items) == 1 else value.items
    if isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            value = parse_json(value)
    if isinstance(value, PickledDict):
        return {str(key): item for key, item in value.pairs[:MAX_VALUES] if isinstance(key, str | int)}
    return value


def _read_texts(value: object) -> tuple[str, ...]:
    """The texts of a list of texts, empty for everything else."""
    if isinstance(value, dict):
        places = list(value.values()) if len(value) <= MAX_NAMES else []
        if all(type(place) is int for place in places) and sorted(places) == list(range(len(places))):
            value = sorted(value, key=value.__getitem__) if places else None
        else:
            value = [value.get(str(place)) for place in range(len(places))]
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict | PickledDict):
        items = [_open(item) for item in value[: MAX_NAMES + 1]]
        value = [item.get("name") if isinstance(item, dict) else None for item in items]
    if isinstance(value, list | tuple):
        is_short = (isinstance(item, str | bytes | RawArray) and not _is_long(item) for item in value[: MAX_NAMES + 1])
        if not value or len(value) > MAX_NAMES or not all(is_short):
            return ()
    if isinstance(value, str | list | tuple | RawArray):
        with contextlib.suppress(MotionRefused):
            return parse_names("names", value)
    return ()


def _is_long(item: str | bytes | RawArray) -> bool:
    return not isinstance(item, RawArray) and len(item) > MAX_NAME_CHARACTERS
