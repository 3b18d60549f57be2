"""The `robot.yaml`: reading it and checking the types of its values; names are looked up in `amp_core.robot.model`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from amp_core.errors import RobotRefused
from amp_core.strict_yaml import describe_yaml, load_yaml, quote

SPEC_FILE = "robot.yaml"

REQUIRED_KEYS = ("model", "contact_channels", "height_range")
OPTIONAL_KEYS = ("name", "control_dt", "joints", "servos", "fixed", "ground_geom", "expected_mass")
SERVO_KEYS = ("kp", "kd", "limit", "armature")

DEFAULT_CONTROL_DT = 0.02
MAX_SPEC_BYTES = 64 * 1024
MAX_NAMES = 256

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names become file names, URL parts and column values."""


@dataclass(frozen=True)
class Servo:
    """A position servo: it pushes with `kp·(target − angle) − kd·velocity`, at most `limit` either way.

    Args:
      kp: N·m/rad. kd: N·m·s/rad. limit: N·m; None leaves the one that the model's own actuator has.
      armature: kg·m², the rotor's inertia at the joint; None leaves the model's.
    """

    kp: float
    kd: float
    limit: float | None = None
    armature: float | None = None


@dataclass(frozen=True)
class RobotSpec:
    """The contents of a `robot.yaml`; `docs/robots.md` explains each key.

    Args:
      joints: None stands for all joints that move, in the model's order.
      contact_channels: of each channel its geoms, or the body whose geoms it has.
      servos, fixed: by patterns of joint names; the angles are in rad.
    """

    name: str | None
    model: str
    control_dt: float
    joints: tuple[str, ...] | None
    contact_channels: tuple[tuple[str, tuple[str, ...] | str], ...]
    ground_geom: str | None
    height_range: tuple[float, float]
    expected_mass: float | None
    servos: tuple[tuple[str, Servo], ...] = ()
    fixed: tuple[tuple[str, float], ...] = ()

    @classmethod
    def read(cls, path: Path) -> RobotSpec:
        """Reads a file and checks the type of every value.

        Raises:
          RobotRefused: the file is not such YAML, or a key is unknown, missing or of another type; names the key.
        """
        document = read_document(path)
        known_keys = REQUIRED_KEYS + OPTIONAL_KEYS
        for key in document:
            if key not in known_keys:
                expected, remedy = f"one of: {', '.join(known_keys)}", "Correct or remove it"
                raise RobotRefused(
                    f"unknown key {quote(key)}", file=str(path), key=str(key)[:64], expected=expected, remedy=remedy
                )
        for key in REQUIRED_KEYS:
            if key not in document:
                expected, remedy = f"at least: {', '.join(REQUIRED_KEYS)}", "Add it (docs/robots.md explains each key)"
                raise RobotRefused(f"the key {key!r} is missing", file=str(path), key=key, expected=expected, remedy=remedy)
        values = {key: _Value(value, key, str(path)) for key, value in document.items()}
        return cls(
            name=values["name"].name() if "name" in values else None,
            model=values["model"].text(),
            control_dt=values["control_dt"].positive() if "control_dt" in values else DEFAULT_CONTROL_DT,
            joints=values["joints"].names() if "joints" in values else None,
            contact_channels=values["contact_channels"].channels(),
            ground_geom=values["ground_geom"].text() if "ground_geom" in values else None,
            height_range=values["height_range"].interval(),
            expected_mass=values["expected_mass"].positive() if "expected_mass" in values else None,
            servos=values["servos"].servos() if "servos" in values else (),
            fixed=values["fixed"].angles() if "fixed" in values else (),
        )


def read_document(path: Path) -> dict[Any, Any]:
    """The mapping in a `robot.yaml`, its keys and values unchecked.

    Raises:
      RobotRefused: the file is too large, or no UTF-8 text, or no YAML mapping without aliases and repeated keys.
    """
    size = path.stat().st_size
    if size > MAX_SPEC_BYTES:
        raise RobotRefused(
            f"the file has {size} bytes",
            file=str(path),
            expected=f"at most {MAX_SPEC_BYTES}",
            remedy="A robot.yaml is a page of text: is this the right file?",
        )
    try:
        document = load_yaml(path.read_bytes())
    except UnicodeDecodeError as error:
        raise RobotRefused("the file is not UTF-8 text", file=str(path), remedy="Save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:400] or type(error).__name__
        raise RobotRefused(
            f"the file is not the YAML that is expected here: {problem}", file=str(path), remedy="Correct it (docs/robots.md)"
        ) from error
    if isinstance(document, str) and document.lstrip().startswith("<"):
        raise RobotRefused(
            "this is XML, such as an MJCF model",
            file=str(path),
            expected="a robot.yaml that names the model",
            remedy=f"Write a robot.yaml with `model: {path.name}`, joints and feet (docs/robots.md)",
        )
    if not isinstance(document, dict):
        raise RobotRefused(
            f"the file holds {describe_yaml(document)}",
            file=str(path),
            expected="keys and values",
            remedy="See docs/robots.md",
        )
    return document


@dataclass(frozen=True)
class _Value:
    """A value of the file with the key that its refusals name."""

    value: Any
    key: str
    file: str

    def refusal(self, problem: str, expected: str) -> RobotRefused:
        return RobotRefused(problem, file=self.file, key=self.key, expected=expected, remedy="See docs/robots.md")

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value or "\0" in self.value:
            raise self.refusal(f"it is {describe_yaml(self.value)}", "a name (quote it if it looks like a number)")
        return self.value

    def name(self) -> str:
        text = self.text()
        if not NAME_PATTERN.fullmatch(text):
            raise self.refusal(f"{quote(text)} cannot be a name", "1 to 64 letters, digits, '.', '_' or '-'")
        return text

    def number(self, low: float, high: float, expected: str) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not low <= self.value <= high:
            raise self.refusal(f"it is {describe_yaml(self.value)}", f"{expected} (YAML reads 2e-2 as text)")
        return float(self.value)

    def positive(self) -> float:
        return self.number(1e-12, 1e6, "a positive number such as 0.02")

    def entries(self, expected: str) -> dict[str, _Value]:
        """The values of a mapping by their keys, which refusals name."""
        if not isinstance(self.value, dict) or not self.value or len(self.value) > MAX_NAMES:
            raise self.refusal(f"it is {describe_yaml(self.value)}", expected)
        return {
            replace(self, value=key).text(): replace(self, key=f"{self.key}.{key}", value=value)
            for key, value in self.value.items()
        }

    def patterns(self, expected: str) -> dict[str, _Value]:
        """The values of a mapping by patterns of joint names."""
        entries = self.entries(expected)
        for pattern in entries:
            try:
                re.compile(pattern)
            except re.error as error:
                problem = f"{quote(pattern)} is no regular expression: {error}"
                raise self.refusal(problem, "a pattern of joint names such as left_hand_.*") from None
        return entries

    def servos(self) -> tuple[tuple[str, Servo], ...]:
        expected = "{kp: 40, kd: 2.5} for each pattern of joint names, and limit and armature if the model lacks them"
        result = []
        for pattern, value in self.patterns(expected).items():
            settings = value.entries(expected)
            if unknown := [key for key in settings if key not in SERVO_KEYS]:
                raise value.refusal(f"unknown key {quote(unknown[0])}", f"only {', '.join(SERVO_KEYS)}")
            if missing := [key for key in ("kp", "kd") if key not in settings]:
                raise value.refusal(f"the key {missing[0]!r} is missing", expected)
            optional = {key: settings[key].positive() for key in ("limit",) if key in settings}
            if "armature" in settings:
                optional["armature"] = settings["armature"].number(0.0, 1e6, "a number of at least 0, in kg·m²")
            kd = settings["kd"].number(0.0, 1e6, "a number of at least 0, in N·m·s/rad")
            result.append((pattern, Servo(settings["kp"].positive(), kd, **optional)))
        return tuple(result)

    def angles(self) -> tuple[tuple[str, float], ...]:
        entries = self.patterns("an angle in rad for each pattern of joint names, such as left_hand_.*: 0")
        return tuple((pattern, value.number(-1e3, 1e3, "an angle in rad")) for pattern, value in entries.items())

    def interval(self) -> tuple[float, float]:
        expected = "[low, high] in metres with 0 < low < high"
        if not isinstance(self.value, list) or len(self.value) != 2:
            raise self.refusal(f"it is {describe_yaml(self.value)}", expected)
        if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in self.value):
            raise self.refusal("a bound is not a number", expected)
        low, high = (float(bound) for bound in self.value)
        if not 0.0 < low < high < 1e3:
            raise self.refusal(f"it is [{low:g}, {high:g}]", expected)
        return low, high

    def names(self) -> tuple[str, ...]:
        if not isinstance(self.value, list) or not self.value or len(self.value) > MAX_NAMES:
            raise self.refusal(f"it is {describe_yaml(self.value)}", f"a list of 1 to {MAX_NAMES} names")
        names = tuple(replace(self, value=item).text() for item in self.value)
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self.refusal(f"{quote(name)} appears twice", "each name once")
        return names

    def channels(self) -> tuple[tuple[str, tuple[str, ...] | str], ...]:
        entries = self.entries("channel: [geom, …], or channel: {body: NAME}, one line a contact channel")
        channels = tuple((replace(self, value=name).name(), value.channel()) for name, value in entries.items())
        all_geoms = [geom for _, geoms in channels if not isinstance(geoms, str) for geom in geoms]
        for i, geom in enumerate(all_geoms):
            if geom in all_geoms[:i]:
                raise self.refusal(f"the geom {quote(geom)} is in two channels", "each geom in one channel")
        return channels

    def channel(self) -> tuple[str, ...] | str:
        if not isinstance(self.value, dict):
            return self.names()
        if list(self.value) != ["body"]:
            raise self.refusal(f"it is {describe_yaml(self.value)}", "a list of geoms, or {body: NAME}")
        return replace(self, key=f"{self.key}.body", value=self.value["body"]).text()
