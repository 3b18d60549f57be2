"""What an augmentation does, as a value and as its canonical text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from amp_core.errors import InputRefused

WARP_RANGE = (0.9, 1.1)
MAX_LOOPS = 50
BLEND_RANGE = (0.05, 1.0)
DEFAULT_BLEND = 0.2

_MAX_TEXT = 120
_SYNTAX = (
    "level, mirror, warp=0.9, heading=90, loop=3 or loop=3:0.3 (seconds of blend), or several joined by +; or cut=A:B alone"
)
_NUMBER = r"\d{1,4}(?:\.\d{1,9})?"
_PART = re.compile(
    rf"(?P<level>level)|(?P<mirror>mirror)|loop=(?P<loop>\d{{1,4}})(?::(?P<blend>{_NUMBER}))?"
    rf"|warp=(?P<time_warp>[+-]?{_NUMBER})|heading=(?P<heading>[+-]?{_NUMBER})|cut=(?P<cut>\d{{1,9}}:\d{{1,9}})"
)
_TYPES: dict[str, Callable[[str], Any]] = {
    "level": bool,
    "mirror": bool,
    "loop": int,
    "blend": float,
    "time_warp": float,
    "heading": float,
    "cut": lambda text: tuple(map(int, text.split(":"))),
}


@dataclass(frozen=True)
class Augmentation:
    """What to do to a clip, in this order: level, mirror, warp the time, loop, turn; or, alone, cut. Something must be changed.

    Args:
      mirror: left and right change places.
      time_warp: speed factor, 0.9 to 1.1; 0.9 is slower (the clip lasts 1/0.9 as long), 1 leaves it.
      heading: deg about the world's z axis through the first root position, counter-clockwise from above; kept in (-180, 180].
      loop: how often the clip's best cycle is played in all; 1 leaves it.
      blend: s over which a seam is blended.
      cut: (A, B), the frames A to B - 1 of the file as a clip of their own; with nothing else.
      level: what the ground under the feet rises or falls is taken out of the root's height.

    Raises:
      InputRefused: a value out of its range, or nothing to do.
    """

    mirror: bool = False
    time_warp: float = 1.0
    heading: float = 0.0
    loop: int = 1
    blend: float = DEFAULT_BLEND
    cut: tuple[int, int] | None = None
    level: bool = False

    def __post_init__(self) -> None:
        low, high = WARP_RANGE
        warp = _check_number("warp", self.time_warp, f"a speed factor from {low} (slower) to {high} (faster)", low, high)
        heading = _check_number("heading", self.heading, "degrees from -360 to 360", -360.0, 360.0)
        blend = _check_number("blend", self.blend, f"{BLEND_RANGE[0]} to {BLEND_RANGE[1]} s", *BLEND_RANGE)
        if isinstance(self.loop, bool) or not isinstance(self.loop, int) or not 1 <= self.loop <= MAX_LOOPS:
            raise _augmentation_error(f"the loop is {str(self.loop)[:20]!r}", "loop", f"a whole number from 2 to {MAX_LOOPS}")
        if self.cut is not None:
            start, stop = self.cut
            if not 0 <= start <= stop - 2:
                raise _augmentation_error(f"the cut is {start}:{stop}", "cut", "A:B with at least 2 frames from A to B - 1")
            object.__setattr__(self, "cut", (start, stop))  # From JSON it is a list.
        object.__setattr__(self, "level", bool(self.level))
        object.__setattr__(self, "mirror", bool(self.mirror))
        object.__setattr__(self, "time_warp", round(warp, 6))
        # Adding zero turns -0.0 into 0.0.
        object.__setattr__(self, "heading", round(-((180.0 - heading) % 360.0 - 180.0), 6) + 0.0)
        object.__setattr__(self, "blend", round(blend, 6) if self.loop > 1 else DEFAULT_BLEND)
        if self.cut is not None and "+" in self.text:
            raise _augmentation_error(
                f"{self.text!r} joins a cut to something else", "cut", "cut=A:B alone; then augment the part"
            )
        if not self.text:
            raise _augmentation_error("the augmentation changes nothing", "augmentation", _SYNTAX)

    @property
    def text(self) -> str:
        """The canonical text, such as `mirror+warp=0.9`; `parse` reads it back."""
        parts = ["level"] if self.level else []
        if self.mirror:
            parts.append("mirror")
        if self.time_warp != 1.0:
            parts.append(f"warp={_format(self.time_warp)}")
        if self.loop > 1:
            parts.append(f"loop={self.loop}" + ("" if self.blend == DEFAULT_BLEND else f":{_format(self.blend)}"))
        if self.heading != 0.0:
            parts.append(f"heading={_format(self.heading)}")
        if self.cut is not None:
            parts.append(f"cut={self.cut[0]}:{self.cut[1]}")
        return "+".join(parts)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """From its text; the parts may come in any order, each once.

        Raises:
          InputRefused: unknown or repeated parts, numbers out of range.
        """
        arguments: dict[str, Any] = {}
        for part in text.split("+") if len(text) <= _MAX_TEXT else [text[:_MAX_TEXT]]:
            match = _PART.fullmatch(part.strip())
            if match is None:
                raise _augmentation_error(f"{part[:40]!r} is no augmentation", "augmentation", _SYNTAX)
            argument = {name: _TYPES[name](value) for name, value in match.groupdict().items() if value}
            if argument.get("loop", 2) < 2:
                raise _augmentation_error(f"the loop is {argument['loop']}", "loop", f"a whole number from 2 to {MAX_LOOPS}")
            if argument.keys() & arguments.keys():
                raise _augmentation_error(f"{part[:40]!r} comes after another of its kind", "augmentation", "each kind once")
            arguments |= argument
        return cls(**arguments)


def parse_all(texts: Iterable[str]) -> tuple[Augmentation, ...]:
    """Augmentations from their texts, each once, in the order given.

    Raises:
      InputRefused: as `Augmentation.parse`.
    """
    return tuple(dict.fromkeys(Augmentation.parse(text) for text in texts))


def _augmentation_error(problem: str, key: str, expected: str) -> InputRefused:
    return InputRefused(problem, key=key, expected=expected, remedy="See docs/augmentation.md")


def _check_number(key: str, value: Any, expected: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= float(value) <= high:
        raise _augmentation_error(f"{key} is {str(value)[:20]}", key, expected)
    return float(value)


def _format(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
