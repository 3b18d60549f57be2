"""A locked version as something that can be tested again, from the service's bytes alone."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from amp_core.client import ApiClient, DatasetWarning, PulledVersion, pull
from amp_core.client.answers import LockedManifest
from amp_core.client.versions import check_manifest
from amp_core.digests import digest_of_file
from amp_core.errors import IntegrityError, RobotRefused
from amp_core.npz import mmap_shards
from amp_core.progress import Progress
from amp_core.robot import Robot, bundled_robots
from amp_core.strict_json import read_json
from amp_core.verify import Artifacts, Clip, Subject
from amp_core.verify.stored import stored_clip


@dataclass(frozen=True)
class LockedVersion:
    """A locked version to be tested.

    Args:
      waivers: the tests that its lock waived, with reasons.
      locked: what its manifest locked, by name: a file with its digest, or a hash.
    """

    subject: Subject
    waivers: tuple[Mapping[str, Any], ...]
    locked: Mapping[str, str]


@contextmanager
def open_version(api: ApiClient, spec: str, robot: str | None, progress: Progress) -> Iterator[LockedVersion]:
    """Fetch a version: its files into the cache, its members' exports and sources into a temporary folder.

    Args:
      robot: a bundled name, or a path to a robot.yaml; None for the bundled one of the version's name.

    Raises:
      RobotRefused: the robot is not the one that the version was made with.
      IntegrityError: the service's bytes do not have the digests of the manifest.
    """
    with warnings.catch_warnings():
        # The tests that follow say more than the client's warning.
        warnings.filterwarnings("ignore", r".* is not ready for training", DatasetWarning)
        version = pull(spec, url=api.address, progress=lambda amount, total: progress(0.3 * amount / max(total, 1), "pulling"))
    manifest = read_json(version.manifest.read_bytes())
    check_manifest(manifest, LockedManifest)
    name, digest = str(manifest["robot"]["name"]), str(manifest["robot"]["digest"])
    if robot is None and name not in bundled_robots():
        raise RobotRefused(
            f"{spec} is of the robot {name!r}, which is not bundled",
            expected="its robot.yaml, as the service has it",
            remedy="Name it with --robot path/to/robot.yaml",
        )
    loaded_robot = Robot.load(robot or name)
    if loaded_robot.digest != digest:
        raise RobotRefused(
            f"{spec} was made with another robot {name!r} than the one here ({loaded_robot.digest})",
            expected=digest,
            remedy="Name the robot.yaml as it was then with --robot, or use the release that the version was locked with",
        )
    with tempfile.TemporaryDirectory(prefix="ampref-verify-") as folder:
        clips = tuple(_fetch_clips(api, version, manifest, Path(folder), progress))
        stats = read_json(version.normalization_stats.read_bytes())
        artifacts = Artifacts(features=mmap_shards(version.shards, "features"), stats=stats, manifest=manifest)
        facts = {"dataset": version.name, "version": version.version, "manifest_sha256": version.manifest_sha256}
        files = {"normalization_stats": version.normalization_stats, "manifest": version.manifest}
        lock_facts = {key: f"{path.name} {digest_of_file(path)}" for key, path in files.items()}
        lock_facts["feature_code_hash"] = version.feature_code_hash
        yield LockedVersion(Subject(loaded_robot, clips, artifacts, facts), tuple(manifest["waivers"]), lock_facts)


def _fetch_clips(
    api: ApiClient, version: PulledVersion, manifest: Mapping[str, Any], folder: Path, progress: Progress
) -> Iterator[Clip]:
    """Fetch what each clip of the manifest was made of, in its order."""
    members = api.iter_members(version.name, version.version)
    rollouts = [list(rows) for _, rows in groupby(members, key=lambda member: str(member["rollout_id"]))]
    entries: Sequence[Mapping[str, Any]] = manifest["clips"]
    if len(rollouts) != len(entries):
        raise _differing_members(version, f"{len(rollouts)} clips", f"{len(entries)} clips")
    for number, (rows, entry) in enumerate(zip(rollouts, entries, strict=True)):
        progress(0.3 + 0.7 * number / len(rollouts), f"fetching {entry['name']}")
        rollout, clip = api.get_rollout(str(rows[0]["rollout_id"])), api.get_clip(str(rows[0]["clip_id"]))
        ranges = [(row["start"], row["end"], row["tier"]) for row in rows]
        expected = [(segment["start"], segment["end"], segment["tier"]) for segment in entry["segments"]]
        if (clip["source_digest"], rollout["recipe_digest"], ranges) != (entry["digest"], entry["recipe_digest"], expected):
            raise _differing_members(version, f"other frames or bytes of {entry['name']!r}", "those of its manifest")
        source = api.download_clip(clip["id"], folder / f"{clip['id']}.source")
        arrays = api.download_arrays(rollout["id"], folder / f"{rollout['id']}.npz")
        for path, digest in ((source, clip["source_digest"]), (arrays, rollout["arrays_digest"])):
            if (actual := digest_of_file(path)) != digest:
                raise IntegrityError(
                    f"the service sent bytes with the digest {actual}",
                    file=entry["name"],
                    expected=digest,
                    remedy="Try again; if it stays so, the operator has to restore the blob store",
                )
        options = clip["read_options"]
        yield stored_clip(
            name=entry["name"],
            tier=entry["tier"],
            recipe=rollout["recipe"],
            attempt=int(rollout["provenance"].get("attempt") or 0),
            arrays=arrays,
            ranges=ranges,
            source=source,
            source_digest=clip["source_digest"],
            reading={"format": clip["source_format"], "fps": options.get("fps"), "quat_order": options.get("quat_order")},
            metrics=entry["quality_metrics"],
        )


def _differing_members(version: PulledVersion, members: str, expected: str) -> IntegrityError:
    return IntegrityError(
        f"the service's members of {version.name}=={version.version} are not those of its manifest: {members}",
        expected=expected,
        remedy="Do not train on it, and ask the service's operator",
    )
