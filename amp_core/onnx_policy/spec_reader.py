"""Reads an observation spec: YAML that declares what a policy observes and what its actions mean.

docs/tracking-policies.md explains every key. Nothing in the file is executed: a term is the name of a kind and its options, and
what a kind computes is in `amp_core.onnx_policy.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from amp_core.digests import digest_of
from amp_core.errors import PolicyRefused
from amp_core.onnx_policy.entries import DOCS, Entry, suggest_name
from amp_core.onnx_policy.kinds import COMMON_OPTIONS, KINDS, ROTATIONS, Term
from amp_core.onnx_policy.model_file import ModelFile
from amp_core.onnx_policy.spec import ActionSpec, PolicySpec
from amp_core.robot import Robot
from amp_core.strict_yaml import describe_yaml, load_yaml

__all__ = ["MAX_OBSERVATION", "read_spec"]

MAX_SPEC_BYTES = 64 * 1024
MAX_TERMS = 64
MAX_HISTORY = 64
MAX_FRAMES = 128
MAX_LINKS = 16
MAX_LOOK_AHEAD = 500
MAX_OBSERVATION = 65_536
"""Numbers of an observation."""

_KEYS = (
    *("control_rate", "joints", "default_pose", "anchor_body", "bodies", "observation", "history_layout", "frame_offset"),
    *("action", "inputs", "state"),
)
_OPTIONS = tuple(dict.fromkeys(option for kind in KINDS.values() for option in kind.options))
_ACTION_KEYS = ("joints", "scale", "offset", "clip", "other_joints", "output")
_METADATA_KEYS: Mapping[str, str] = {
    "joints": "joint_names",
    "default_pose": "default_joint_pos",
    "anchor_body": "anchor_body_name",
    "bodies": "body_names",
}
"""Keys of a spec that a model's metadata may give, and what they are called there."""


def read_spec(path: Path, robot: Robot, model: ModelFile | None = None) -> PolicySpec:
    """Read an observation spec for a robot.

    Args:
      model: whose metadata give the joints' names, the default pose, the anchor body, the bodies and the scale of the actions
        where the spec does not.

    Raises:
      PolicyRefused: the file is no such spec, or names what the robot does not have; names the key.
    """
    data = _read_bytes(path)
    return _Reader(Entry(_parse(data, str(path)), "", str(path)), robot, model, digest_of(data)).read()


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise PolicyRefused(
            f"cannot be read: {error.strerror or error}", file=str(path), expected=f"a spec of observations ({DOCS})"
        ) from error
    if len(data) > MAX_SPEC_BYTES:
        raise PolicyRefused(
            f"the file has over {MAX_SPEC_BYTES} bytes",
            file=str(path),
            remedy="A spec is a page of text: is this the right file?",
        )
    return data


def _parse(data: bytes, file: str) -> object:
    try:
        return load_yaml(data)
    except UnicodeDecodeError as error:
        raise PolicyRefused("the file is not UTF-8 text", file=file, remedy="Save it as UTF-8; is it the model?") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:400] or type(error).__name__
        raise PolicyRefused(
            f"the file is not the YAML that is expected here: {problem}", file=file, remedy=f"See {DOCS}"
        ) from error


class _Reader:
    """Reads one document; `from_metadata` collects the keys that the model gave."""

    def __init__(self, root: Entry, robot: Robot, model: ModelFile | None, digest: str) -> None:
        self.root, self.robot, self.digest = root, robot, digest
        self.metadata, self.model_file = (model.metadata, model.file) if model else ({}, "")
        self.entries = root.mapping(_KEYS, mandatory=("observation", "action"))
        self.from_metadata: list[str] = []
        self._take_from_metadata()
        self.joints = self._read_robot_names("joints", self.robot.joint_names, self.robot.joint_names)
        pose = self.entries.get("default_pose")
        self.default_pose = pose.values_by_joint(self.joints) if pose else None
        self.body_names = tuple(self.robot.model.body(index).name for index in range(1, self.robot.model.nbody))
        self.root_name = str(self.robot.model.body(self.robot.root_body).name)
        self.bodies = self._read_robot_names("bodies", self.body_names, ())
        self.anchor_body = self._get_body(self.entries["anchor_body"]) if "anchor_body" in self.entries else self.root_name

    def read(self) -> PolicySpec:
        action = self._read_action(self.entries["action"])
        terms = tuple(self._read_term(entry) for entry in self.entries["observation"].items("terms", MAX_TERMS))
        names = [term.name for term in terms]
        for index, name in enumerate(names):
            if name in names[:index]:
                self.entries["observation"].refuse(f"two terms are called {name!r}", "one name a term")
        layout = (
            self.entries["history_layout"].choice(("by_term", "by_frame")) if "history_layout" in self.entries else "by_term"
        )
        if layout == "by_frame" and len({(term.history, term.delay) for term in terms}) > 1:
            lengths = ", ".join(f"{term.name} {term.history}" for term in terms)
            self.entries["history_layout"].refuse(
                f"the terms have histories of several lengths: {lengths}", "one for all terms"
            )
        return PolicySpec(
            file=self.root.file,
            digest=self.digest,
            control_rate=self.entries["control_rate"].number(1e-3, 1e5) if "control_rate" in self.entries else None,
            joints=self.joints,
            default_pose=self.default_pose,
            anchor_body=self.anchor_body,
            terms=terms,
            by_frame=layout == "by_frame",
            frame_offset=self.entries["frame_offset"].integer(-100, 100) if "frame_offset" in self.entries else 0,
            action=action,
            inputs=self._read_links("inputs", ("observation", "time_step")),
            state=self._read_links("state", None),
            from_metadata=tuple(self.from_metadata),
        )

    def _take_from_metadata(self) -> None:
        """Add what the spec leaves out and the model's metadata has."""
        for key, name in _METADATA_KEYS.items():
            if key not in self.entries and self.metadata.get(name, "").strip():
                text = self.metadata[name]
                parts: list[str] = [part.strip() for part in text.split(",")]
                value: object = text.strip() if key == "anchor_body" else parts
                if key == "default_pose":
                    value = self._parse_numbers(parts, name)
                self.entries[key] = Entry(value, name, self.model_file)
                self.from_metadata.append(key)

    def _parse_numbers(self, parts: Sequence[str], name: str) -> list[float]:
        try:
            return [float(part) for part in parts]
        except ValueError:
            Entry(None, name, self.model_file).refuse("it is no list of numbers", "numbers with commas between them")

    def _read_robot_names(self, key: str, known_names: Sequence[str], default: tuple[str, ...]) -> tuple[str, ...]:
        if key not in self.entries:
            return default
        names = self.entries[key].names()
        for name in names:
            if name not in known_names:
                self.entries[key].refuse(f"the robot {self.robot.name} has no {name!r}", suggest_name(name, known_names))
        return names

    def _get_body(self, entry: Entry) -> str:
        name = entry.text()
        if name not in self.body_names:
            entry.refuse(f"the robot {self.robot.name} has no body {name!r}", suggest_name(name, self.body_names))
        return name

    def _select_joints(self, entry: Entry) -> tuple[str, ...]:
        """The joints of some patterns, in the order of the patterns and then in the policy's."""
        joints = [
            joint for part in entry.items("joint names or patterns") for joint in part.match_names(part.text(), self.joints)
        ]
        for index, joint in enumerate(joints):
            if joint in joints[:index]:
                entry.refuse(f"the joint {joint!r} is selected twice", "each joint once")
        return tuple(joints)

    def _read_action(self, entry: Entry) -> ActionSpec:
        entries = entry.mapping(_ACTION_KEYS)
        joints = self._select_joints(entries["joints"]) if "joints" in entries else self.joints
        if "scale" not in entries and self.metadata.get("action_scale", "").strip():
            numbers = self._parse_numbers(self.metadata["action_scale"].split(","), "action_scale")
            value = numbers[0] if len(numbers) == 1 else numbers
            entries["scale"] = Entry(value, "action_scale", self.model_file)
            self.from_metadata.append("action.scale")
        if "scale" not in entries:
            entry.refuse("the key 'scale' is missing", "rad a unit of action: a number, or one by joint")
        action = ActionSpec(
            joints=joints,
            scale=entries["scale"].values_by_joint(joints),
            offset=entries["offset"].choice(("default_pose", "reference", "zero")) if "offset" in entries else "default_pose",
            clip=entries["clip"].interval() if "clip" in entries else None,
            other_joints=entries["other_joints"].choice(("reference", "default_pose"))
            if "other_joints" in entries
            else "reference",
            output=entries["output"].text() if "output" in entries else None,
        )
        needs_pose = action.offset == "default_pose" or (
            action.other_joints == "default_pose" and len(joints) < len(self.joints)
        )
        if needs_pose and self.default_pose is None:
            entry.refuse(
                "the actions are offsets from a default pose that is not declared", "a key default_pose, or another offset"
            )
        return action

    def _read_term(self, entry: Entry) -> Term:
        entries = entry.mapping((*COMMON_OPTIONS, *_OPTIONS))
        if "kind" not in entries:
            entry.refuse("the key 'kind' is missing", f"one of: {', '.join(KINDS)}")
        name = entries["kind"].text()
        if name not in KINDS:
            entries["kind"].refuse(f"there is no kind of term {name!r}", suggest_name(name, KINDS))
        kind = KINDS[name]
        for key, option in entries.items():
            if key not in COMMON_OPTIONS and key not in kind.options:
                options = ", ".join((*COMMON_OPTIONS, *kind.options))
                option.refuse(f"a term of kind {name} has no option {key!r}", f"of: {options}", "Remove it")
        if kind.needs_default and self.default_pose is None:
            entries["kind"].refuse(f"a term of kind {name} needs a default pose", "a key default_pose in the spec")
        bodies = self._select_bodies(entries["bodies"]) if "bodies" in entries else self.bodies
        if "bodies" in kind.options and not bodies:
            entry.refuse(f"a term of kind {name} needs bodies", "names in the term or in the spec: bodies: [torso_link, …]")
        if "value" in kind.options and "value" not in entries:
            entry.refuse("the key 'value' is missing", "a list of numbers")
        body = self._get_body(entries["body"]) if "body" in entries else self.root_name
        term = Term(
            name=entries["name"].text() if "name" in entries else name,
            kind=name,
            joints=self._select_joints(entries["joints"]) if "joints" in entries else self.joints,
            bodies=bodies,
            frames=self._read_frames(entries["frames"]) if "frames" in entries else (0,),
            rotation=entries["rotation"].choice(ROTATIONS) if "rotation" in entries else "6d_row_major",
            body=body,
            point=self._read_point(entries["point"], body) if "point" in entries else (0.0, 0.0, 0.0),
            frame=entries["frame"].choice(("reference", "robot")) if "frame" in entries else "reference",
            form=entries["form"].choice(("share", "sin_cos")) if "form" in entries else "share",
            value=entries["value"].numbers() if "value" in entries else (),
            history=entries["history"].integer(1, MAX_HISTORY) if "history" in entries else 1,
            delay=entries["delay"].integer(0, MAX_HISTORY) if "delay" in entries else 0,
            newest_first="order" in entries and entries["order"].choice(("oldest_first", "newest_first")) == "newest_first",
            starts_with_zeros="start" in entries and entries["start"].choice(("repeat", "zeros")) == "zeros",
            clip=entries["clip"].interval() if "clip" in entries else None,
        )
        if "scale" not in entries:
            return term
        scale = entries["scale"]
        return replace(term, scale=scale.numbers() if isinstance(scale.value, list) else (scale.number(),))

    def _select_bodies(self, entry: Entry) -> tuple[str, ...]:
        for name in (names := entry.names()):
            if name not in self.body_names:
                entry.refuse(f"the robot {self.robot.name} has no body {name!r}", suggest_name(name, self.body_names))
        return names

    def _read_frames(self, entry: Entry) -> tuple[int, ...]:
        return tuple(
            item.integer(-MAX_LOOK_AHEAD, MAX_LOOK_AHEAD) for item in entry.items("numbers of frames ahead", MAX_FRAMES)
        )

    def _read_point(self, entry: Entry, body: str) -> tuple[float, float, float]:
        """The origin of a body, its centre of mass, or a place in its frame."""
        if isinstance(entry.value, str):
            if entry.choice(("origin", "com")) == "origin":
                return 0.0, 0.0, 0.0
            x, y, z = (float(value) for value in self.robot.model.body(body).ipos)
            return x, y, z
        numbers = entry.numbers(3)
        if len(numbers) != 3:
            entry.refuse(f"it has {len(numbers)} numbers", "origin, com, or [x, y, z] in metres in the body's frame")
        return numbers[0], numbers[1], numbers[2]

    def _read_links(self, key: str, choices: Sequence[str] | None) -> dict[str, str]:
        """Names of the model's inputs, and what each has."""
        if key not in self.entries:
            return {}
        entry = self.entries[key]
        if not isinstance(entry.value, dict) or not 0 < len(entry.value) <= MAX_LINKS:
            entry.refuse(f"it is {describe_yaml(entry.value)}", "names of the model's inputs, and what each has")
        values = entry.mapping([str(name) for name in entry.value])
        return {name: value.text() if choices is None else value.choice(choices) for name, value in values.items()}
