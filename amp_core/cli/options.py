"""Options and arguments that several verbs take, with one wording."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Option

from amp_core.errors import InputRefused
from amp_core.recipe import GENERATED_MODES, MODES, PhysicsScale
from amp_core.tiers import GATE_PROFILES


@contextmanager
def refuse_usage(option: str | None = None) -> Iterator[None]:
    """Turn a refusal of what an option says into wrong usage, because nothing but the option can be wrong."""
    try:
        yield
    except InputRefused as error:
        raise BadParameter(f"{error.what}; expected {error.expected}", param_hint=option) from None


def mode_parser(modes: Collection[str]) -> Callable[[str], str]:
    """Accepts one of the modes. Rollouts have the generated ones: none is in mode `auto`, so that it would select nothing."""

    def parse(text: str) -> str:
        if text not in modes:
            raise BadParameter(f"{text!r} is no mode; choose {' or '.join(modes)}")
        return text

    return parse


_PERIODS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_period(text: str) -> float:
    """Seconds of `90d`, `12h`, `30m` or `2w`."""
    match = re.fullmatch(r"([0-9]{1,5})([mhdw])", text.strip(), re.ASCII)
    if match is None or int(match[1]) == 0:
        raise BadParameter(f"{text!r} is no period; write a number and m, h, d or w, for example 90d")
    return float(int(match[1]) * _PERIODS[match[2]])


def parse_bucket(text: str) -> PhysicsScale:
    """A bucket of physics from its name."""
    with refuse_usage():
        return PhysicsScale.parse(text)


def parse_profile(text: str) -> str:
    """The name of a gate profile that this release has."""
    if text not in GATE_PROFILES:
        raise BadParameter(f"{text!r} is no gate profile; choose {' or '.join(GATE_PROFILES)}")
    return text


MotionFiles = Annotated[list[Path], Argument(metavar="MOTION", help="Motion files: .pkl, .npz, .json or .csv.")]
RobotName = Annotated[str, Option(help="A bundled robot's name (see: ampref robots), or a path to a robot.yaml.")]
mode_option = partial(Option, metavar="MODE", parser=mode_parser(MODES))
rollout_mode_option = partial(Option, metavar="MODE", parser=mode_parser(GENERATED_MODES))
Mode = Annotated[
    str | None, mode_option(help="auto, rollout, tracked, assisted, recorded or teacher_forced; the default is auto.")
]
Seed = Annotated[int | None, Option(help="The recipe's seed.")]
Profile = Annotated[
    str | None,
    Option(
        parser=parse_profile,
        metavar="NAME",
        help="The gate profile that decides the tier: amp-0.12 (default), or amp-0.12-dynamic for running and jumping.",
    ),
]
TakenProfile = Annotated[
    str | None,
    Option(parser=parse_profile, metavar="NAME", help="Take what this gate profile judged; default amp-0.12."),
]
Physics = Annotated[
    list[PhysicsScale] | None,
    Option(
        parser=parse_bucket,
        metavar="BUCKET",
        help="Score in these physics: factors such as friction=0.7,mass=1.1,damping=1.0, or canonical; may be repeated.",
    ),
]
Fps = Annotated[float | None, Option(help="Frames per second, for .csv files and others that do not hold it.")]
QuatOrder = Annotated[Literal["xyzw", "wxyz"] | None, Option(help="Quaternion order; must be given for .csv.")]
MAX_SECONDS = 1e6
"""More than a clip lasts that anybody records; bounds a number of frames."""

MaxDuration = Annotated[
    float | None,
    Option(min=0, max=MAX_SECONDS, metavar="SECONDS", help="How long a clip may last at most; the default is 120 s."),
]
Threads = Annotated[int | None, Option(min=1, help="Simulation threads; the results do not depend on it.")]

Url = Annotated[str | None, Option("--url", help="The service's address; overrides AMPREF_URL, default http://127.0.0.1:8000.")]
Timeout = Annotated[float | None, Option(min=0, help="Seconds to wait at most; the work goes on without us.")]

Json = Annotated[
    Path | None,
    Option("--json", metavar="[=OUT]", help="One JSON document on stdout, and everything else on stderr; or into OUT."),
]
JsonOut = Annotated[
    Path | None,
    Option("--json", metavar="[OUT]", help="One JSON document into OUT; without OUT, or with -, on stdout."),
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print only what a script needs, warnings and errors.")]
