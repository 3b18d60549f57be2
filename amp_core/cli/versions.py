"""A locked version as something that can be tested again, from the service's bytes alone."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp_core.errors import IntegrityError, RobotRefused
from amp_core.strict_json import read_json

if TYPE_CHECKING:
    from amp_core.client import ApiClient, PulledVersion
    from amp_core.formats import Limits
    from amp_core.robot import Robot
    from amp_core.verify import Clip, Subject

_CHUNK = 1 << 20


@dataclass(frozen=True)
class LockedVersion:
    """A locked version to be tested: what its lock said of it beside the subject."""

    subject: Subject
    waivers: tuple[Mapping[str, Any], ...]
    locked: Mapping[str, str]


@contextmanager
def opened_version(
    api: ApiClient, spec: str, robot: str | None, progress: Callable[[float, str], None]
) -> Iterator[LockedVersion]:
    """Fetch a version: its three files into the cache, its members' exports and sources into a folder of a moment.

    Args:
      robot: a bundled name, or a path to a robot.yaml; None for the bundled one of the version's name.
    Raises:
      RobotRefused: the robot is not the one that the version was made with.
      IntegrityError: bytes that are not those that were promised.
    """
    from amp_core.client import pull
    from amp_core.npz import mmap_member
    from amp_core.verify import Artifacts, Subject

    pulled = pull(spec, url=api.url, progress=lambda done, total: progress(0.3 * done / max(total, 1), "pulling"))
    manifest = read_json(pulled.manifest.read_bytes())
    the_robot = _robot(robot, manifest["robot"], spec)
    with tempfile.TemporaryDirectory(prefix="ampref-verify-") as folder:
        clips = tuple(_clips(api, pulled, manifest, Path(folder), lambda share, text: progress(0.3 + 0.7 * share, text)))
        artifacts = Artifacts(
            features=mmap_member(pulled.features, "features"),
            stats=read_json(pulled.normalization_stats.read_bytes()),
            manifest=manifest,
        )
        facts = {"dataset": pulled.name, "version": pulled.version, "manifest_sha256": pulled.manifest_sha256}
        files = {"normalization_stats": pulled.normalization_stats, "manifest": pulled.manifest}
        yield LockedVersion(
            subject=Subject(the_robot, clips, artifacts, facts),
            waivers=tuple(manifest["waivers"]),
            locked={key: f"{path.name} {_digest(path)}" for key, path in files.items()}
            | {"feature_code_hash": pulled.feature_code_hash},
        )


def _robot(given: str | None, made_with: Mapping[str, Any], spec: str) -> Robot:
    from amp_core.robot import Robot, bundled_robots

    name, digest = str(made_with["name"]), str(made_with["digest"])
    if given is None and name not in bundled_robots():
        raise RobotRefused(
            f"{spec} is of the robot {name!r}, which is not bundled",
            expected="its robot.yaml, as the service has it",
            remedy="Name it with --robot path/to/robot.yaml",
        )
    robot = Robot.load(given or name)
    if robot.digest != digest:
        raise RobotRefused(
            f"{spec} was made with another robot {name!r} than the one here ({robot.digest})",
            expected=digest,
            remedy="Name the robot.yaml as it was then with --robot, or use the release that the version was locked with",
        )
    return robot


def _clips(
    api: ApiClient, pulled: PulledVersion, manifest: Mapping[str, Any], folder: Path, progress: Callable[[float, str], None]
) -> Iterator[Clip]:
    members = [list(those) for _, those in groupby(api.iter_members(pulled.name, pulled.version), _rollout_of)]
    entries: Sequence[Mapping[str, Any]] = manifest["clips"]
    if len(members) != len(entries):
        raise _differs(pulled, f"{len(members)} clips", f"{len(entries)} clips")
    for number, (those, entry) in enumerate(zip(members, entries, strict=True)):
        progress(number / len(members), f"fetching {entry['name']}")
        yield _clip(api, pulled, those, entry, folder)


def _rollout_of(member: Mapping[str, Any]) -> str:
    return str(member["rollout_id"])


def _clip(
    api: ApiClient, pulled: PulledVersion, those: Sequence[Mapping[str, Any]], entry: Mapping[str, Any], folder: Path
) -> Clip:
    from amp_core.verify.stored import stored_clip

    rollout, clip = api.get_rollout(_rollout_of(those[0])), api.get_clip(str(those[0]["clip_id"]))
    ranges = [(member["start"], member["end"], member["tier"]) for member in those]
    told = (clip["source_digest"], rollout["recipe_digest"], ranges)
    promised = [(segment["start"], segment["end"], segment["tier"]) for segment in entry["segments"]]
    if told != (entry["digest"], entry["recipe_digest"], promised):
        raise _differs(pulled, f"other frames or bytes of {entry['name']!r}", "those of its manifest")
    options = clip["read_options"]
    source = api.download_clip(clip["id"], folder / f"{clip['id']}.source")
    _check(source, clip["source_digest"], entry["name"])
    arrays = api.download_arrays(rollout["id"], folder / f"{rollout['id']}.npz")
    _check(arrays, rollout["arrays_digest"], entry["name"])
    return stored_clip(
        name=entry["name"],
        tier=entry["tier"],
        recipe=rollout["recipe"],
        attempt=int(rollout["provenance"].get("attempt") or 0),
        arrays=arrays,
        ranges=ranges,
        source=source,
        source_digest=clip["source_digest"],
        reading={"format": clip["source_format"], "fps": options.get("fps"), "quat_order": options.get("quat_order")},
        limits=_generous(),
    )


def _generous() -> Limits:
    """The service's operator has decided how long a motion may be; here it is only read again."""
    from amp_core.formats import Limits

    return Limits(max_bytes=1 << 32, max_duration_sec=1e6, max_fps=1e6)


def _check(path: Path, digest: str, name: str) -> None:
    found = _digest(path)
    if found != digest:
        raise IntegrityError(
            f"the service sent bytes with the digest {found}",
            file=name,
            expected=digest,
            remedy="Try again; if it stays so, the operator has to restore the blob store",
        )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _differs(pulled: PulledVersion, found: str, expected: str) -> IntegrityError:
    return IntegrityError(
        f"the service's members of {pulled.name}=={pulled.version} are not those of its manifest: {found}",
        expected=expected,
        remedy="Do not train on it, and ask the service's operator",
    )
