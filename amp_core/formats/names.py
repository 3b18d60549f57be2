"""The names that clips may have, and the one that a file's name gives."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

from amp_core.errors import MotionRefused

__all__ = ["EXTENSIONS", "LINE_SEPARATORS", "MAX_LABEL_BYTES", "clean_name", "label_file", "name_clip"]

MAX_NAME_BYTES = 200
MAX_LABEL_BYTES = 120
EXTENSIONS = {".pkl": "pkl", ".pickle": "pkl", ".npz": "npz", ".json": "json", ".csv": "csv"}
"""The format that a file's ending declares, in lower case."""

LINE_SEPARATORS = frozenset({"Zl", "Zp"})
"""The categories of U+2028 and U+2029, which end a line in some programs and none in others."""

_NON_JOINER, _JOINER = "\u200c", "\u200d"
_VIRAMA = 9


def clean_name(name: str) -> str:
    """A clip's name, in Unicode's NFC form, or a refusal.

    Names become file names, URL parts and table cells, so: 1 to 200 bytes of UTF-8, no path or line separators, no control,
    formatting or unassigned characters, no space at either end, no leading dot. The two joiners are permitted where a script
    or an emoji needs them (`_is_safe`).

    Raises:
      MotionRefused: the rule that it breaks.
    """
    problem = None
    if not isinstance(name, str):
        problem = "is not text"
    elif not name:
        problem = "is empty"
    elif len(name) > MAX_NAME_BYTES:
        problem = f"has {len(name)} characters"
    elif not all(_is_safe(name, place) for place in range(len(name))):
        problem = "holds a control or other invisible character"
    elif "/" in name or "\\" in name:
        problem = "holds a path separator"
    elif name != name.strip():
        problem = "begins or ends with a space"
    elif name.startswith("."):
        problem = "begins with a dot"
    else:
        name = unicodedata.normalize("NFC", name)
        if len(name.encode("utf-8")) > MAX_NAME_BYTES:
            problem = f"has {len(name.encode('utf-8'))} bytes of UTF-8"
    if problem:
        subject = f"the clip's name {name[:40]!a}" if isinstance(name, str) and name else "the clip's name"
        raise MotionRefused(
            f"{subject} {problem}",
            key="name",
            expected=f"1 to {MAX_NAME_BYTES} bytes of printable text without '/' or '\\'",
            remedy="Give the clip a plain name such as walk_slow_01",
        )
    return name


def label_file(filename: str) -> str:
    """What errors and clips may call a file whose name is not trusted: its last part, without what no name may hold."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    label = "".join(char for place, char in enumerate(last) if _is_safe(last, place)).strip().lstrip(".").strip()
    # A character that was dropped may have been what a joiner stood beside.
    label = "".join(char for place, char in enumerate(label) if _is_safe(label, place))
    if len(label.encode()) <= MAX_LABEL_BYTES:
        return label or "clip"
    stem, suffix = label.encode()[:MAX_LABEL_BYTES].decode(errors="ignore"), PurePosixPath(label).suffix.lower()
    return stem.strip().rstrip(_JOINER + _NON_JOINER) + (suffix if suffix in EXTENSIONS else "")


def name_clip(filename: str) -> str:
    """The name of a clip from that of its file: without the ending of a format, without spaces at its ends."""
    label = label_file(filename)
    suffix = PurePosixPath(label).suffix
    return clean_name((label.removesuffix(suffix).strip() or "clip") if suffix.lower() in EXTENSIONS else label)


def _is_safe(text: str, place: int) -> bool:
    """Whether the character at a place may be in a name.

    Of the invisible ones only the joiners may, as in domain names (RFC 5892, appendix A): after a virama, the non-joiner
    between Arabic letters (ordinary Persian spelling), the joiner between emoji.
    """
    char = text[place]
    category = unicodedata.category(char)
    if not category.startswith("C"):
        return category not in LINE_SEPARATORS
    if char not in (_NON_JOINER, _JOINER) or not 0 < place < len(text) - 1:
        return False
    left, right = text[place - 1], text[place + 1]
    if unicodedata.combining(left) == _VIRAMA:
        return unicodedata.category(right).startswith("L")
    if char == _NON_JOINER:
        return all(unicodedata.bidirectional(neighbour) in ("AL", "NSM") for neighbour in (left, right))
    return unicodedata.category(right) == "So" and (unicodedata.category(left) in ("So", "Sk") or left == "\ufe0f")
