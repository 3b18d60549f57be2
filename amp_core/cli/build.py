"""A version from a folder of exports: the files of a lock, without a service. It needs MuJoCo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amp_core.admission import assemble, check_candidates
from amp_core.cli.output import Output
from amp_core.cli.reading import find_sources
from amp_core.consistency import check_export
from amp_core.dataset import Bundle, file_names
from amp_core.dataset.candidate import Candidate
from amp_core.dataset.weights import WEIGHT_METRICS
from amp_core.digests import digest_of_file
from amp_core.errors import AmprefError, Conflict, InputRefused, NotFound
from amp_core.metrics import METRICS
from amp_core.quality import EXPORT_ARRAYS, FrameSeries
from amp_core.readiness import TEST_IDS
from amp_core.recipe import GATE_PROFILE, Recipe
from amp_core.reference import PROVENANCE, read_members, read_meta
from amp_core.robot import Robot
from amp_core.segments import find_segments
from amp_core.tiers import Tier, gate_profile, merit_order
from amp_core.verify import Subject, Verification, verify
from amp_core.verify.stored import StoredArrays, stored_clip

Reading = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Selection:
    """Which exports a version takes. `to_dict` has the names of the service's selection.

    Args:
      tiers: 0, 1 or both.
      segments: also the windows of those tiers of clips that fail as a whole.
      profile: the gate profile that judged them; None for that of new recipes.
    """

    robot: str
    tiers: tuple[int, ...] = (0,)
    segments: bool = False
    profile: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The selection as a version's manifest has it."""
        filters: dict[str, Any] = {"mode": None, "recipe": None, "tags": [], "clips": [], "buckets": None}
        return filters | {
            "robot": self.robot,
            "tiers": list(self.tiers),
            "segments": self.segments,
            "gate_profile": self.profile,
        }


@dataclass(frozen=True, eq=False)
class Export:
    """A scored clip in a folder of exports.

    Args:
      windows: `(start, end, tier)` of the parts that pass on their own, of a clip that is not Tier 0.
      window_metrics: of each of them.
    """

    path: Path
    meta: Mapping[str, Any]
    recipe: Recipe
    windows: tuple[tuple[int, int, int], ...]
    window_metrics: tuple[Mapping[str, Any], ...]

    @property
    def merit_order(self) -> tuple[int, ...]:
        frames = sum(end - start for start, end, _ in self.windows)
        tier, is_scaled = int(self.meta["tier"]), not self.recipe.physics.is_identity
        return merit_order(tier, self.recipe.mode, frames, profile=self.recipe.gate_profile, scaled=is_scaled)

    def candidate(self, selection: Selection) -> Candidate | None:
        """What the version takes of it; None where that is nothing."""
        meta, provenance = self.meta, self.meta[PROVENANCE]
        tier, frames = int(meta["tier"]), int(meta["num_frames"])
        metrics = {metric.name: meta["quality_metrics"].get(metric.name) for metric in METRICS}
        ranges, range_metrics = self.windows, self.window_metrics
        if tier in selection.tiers:
            ranges, range_metrics = ((0, frames, tier),), (metrics,)
        elif not selection.segments or Tier.TIER_0 not in selection.tiers:
            return None
        if not ranges:
            return None
        keys = (
            "name", "source_digest", "robot_digest", "recipe_digest", "feature_code_hash", "mujoco_version", "gate_profile",
            "parent_digest", "ancestor_digest", "augmentation",
        )  # fmt: skip
        return Candidate(
            **{name: provenance.get(name) for name in keys},
            path=str(self.path),
            arrays_digest=digest_of_file(self.path),
            generator_version=self.recipe.generator_version,
            mode=self.recipe.mode,
            tier=tier,
            metrics=metrics,
            ranges=ranges,
            range_metrics=tuple({name: values.get(name) for name in WEIGHT_METRICS} for values in range_metrics),
            physics=asdict(self.recipe.physics),
        )


def read_exports(folder: Path, robot: Robot, out: Output) -> Iterator[Export]:
    """The exports in a folder, in the order of their names.

    Other archives are passed over with a note; exports that contradict themselves or are of another robot are refused.
    """
    for path in sorted(folder.glob("*.npz")):
        try:
            meta = read_meta(path)
            recipe = Recipe.from_dict(meta[PROVENANCE]["recipe"])
            check_export(StoredArrays(path), robot, str(path))
        except (NotFound, KeyError):
            out.note(f"note: {path} is no export of this release and was passed over")
            continue
        except AmprefError as error:
            out.refuse(error)
            continue
        segments = []
        if meta["tier"] != Tier.TIER_0:
            series = FrameSeries.from_export(read_members(path, EXPORT_ARRAYS), recipe, robot)
            segments = find_segments(series, gate_profile(recipe.gate_profile), recipe.mode, robot.control_dt)
        yield Export(
            path=path,
            meta=meta,
            recipe=recipe,
            windows=tuple((segment.start, segment.stop, int(segment.tier)) for segment in segments),
            window_metrics=tuple(segment.quality_metrics for segment in segments),
        )


def select_candidates(exports: Sequence[Export], selection: Selection, out: Output) -> list[tuple[Candidate, Export]]:
    """The best export of each clip by one gate profile in the robot's own physics, where the selection takes it."""
    profile, best = selection.profile or GATE_PROFILE, dict[tuple[str, str], Export]()
    for export in exports:
        if not export.recipe.physics.is_identity:
            out.note(f"note: {export.path} is in other physics than the robot's own and was passed over")
            continue
        if export.recipe.gate_profile != profile:
            out.note(f"note: {export.path} was judged by {export.recipe.gate_profile}, not {profile}, and was passed over")
            continue
        key = export.meta[PROVENANCE]["name"], export.meta[PROVENANCE]["source_digest"]
        best[key] = min((best[key], export) if key in best else (export,), key=lambda export: export.merit_order)
    pairs = [(candidate, export) for export in best.values() if (candidate := export.candidate(selection)) is not None]
    if not pairs:
        tiers = " or ".join(Tier(tier).label for tier in selection.tiers)
        recipes = [export.recipe for export in exports if export.meta["tier"] in selection.tiers]
        profiles = sorted({recipe.gate_profile for recipe in recipes if recipe.physics.is_identity} - {profile})
        remedy = f"Take those of another profile: --profile {' or '.join(profiles)}" if profiles else "Take other tiers: --tier"
        raise InputRefused(
            f"the folder holds no export that is {tiers} by {profile}",
            expected="exports of this release, in the robot's own physics",
            remedy=f"{remedy}; or write some: ampref score MOTION... --export DIR",
        )
    return sorted(pairs, key=lambda pair: (pair[0].name, pair[0].source_digest, pair[0].recipe_digest))


def test_candidates(
    pairs: Sequence[tuple[Candidate, Export]],
    robot: Robot,
    sources: Mapping[str, Path],
    reading: Reading,
    *,
    name: str,
    version: str,
    nthread: int,
    progress: Callable[[float, str], None],
) -> Verification:
    """The ten tests, as before a lock."""
    clips = [
        stored_clip(
            name=candidate.name,
            tier=candidate.tier,
            recipe=export.recipe.to_dict(),
            attempt=int(export.meta[PROVENANCE].get("attempt") or 0),
            arrays=export.path,
            ranges=candidate.ranges,
            source=sources.get(candidate.source_digest),
            source_digest=candidate.source_digest,
            reading=reading(sources[candidate.source_digest]) if candidate.source_digest in sources else {},
            metrics=candidate.metrics,
        )
        for candidate, export in pairs
    ]
    subject = Subject(robot, tuple(clips), facts={"dataset": name, "version": version})
    return verify(subject, nthread=nthread, progress=progress)


def build_version(
    exports: Sequence[Export],
    robot: Robot,
    selection: Selection,
    target: Path,
    out: Output,
    *,
    name: str,
    version: str,
    waivers: Sequence[Mapping[str, str]],
    folders: Sequence[Path],
    reading: Reading,
    nthread: int,
    progress: Callable[[float, str], None],
) -> tuple[Bundle, dict[str, Any]]:
    """Select, check, test and write a version, with the bytes that a service's lock of the same rollouts gives.

    Returns:
      The files, and the report of the tests with its checklist and the checks.

    Raises:
      Conflict: a test failed that is not waived.
      AmprefError: as `check_candidates`.
    """
    file_names(version)
    pairs = select_candidates(exports, selection, out)
    candidates = [candidate for candidate, _ in pairs]
    progress(0.0, "checking the exports")
    checks = check_candidates(
        candidates, robot, remedy="Score the clip again (ampref score MOTION --export DIR), or take its file out of DIR"
    )
    sources = find_sources(folders, {candidate.source_digest for candidate in candidates})
    missing = [candidate.name for candidate in candidates if candidate.source_digest not in sources]
    if missing:
        listing = ", ".join(missing[:3]) + ", …" * (len(missing) > 3)
        out.note(
            f"note: the motions of {len(missing)} clips are not at hand ({listing}), so that test 1C replays them and cannot "
            "generate them again: the version will not be ready for training; --motions names their folder"
        )
    verification = test_candidates(
        pairs, robot, sources, reading, name=name, version=version, nthread=nthread,
        progress=lambda share, text: progress(0.05 + 0.9 * share, text),
    )  # fmt: skip
    waived_tests = {waiver["test"] for waiver in waivers}
    failures = [test for test in verification.failed if test.id not in waived_tests]
    if failures:
        options = " ".join(f'--waive {test.id}="REASON"' for test in failures)
        reasons = "; ".join(f"{test.name}: {test.reason[:400]}" for test in failures[:5])
        raise Conflict(
            f"{name}=={version} was not written, because {len(failures)} of {len(TEST_IDS)} tests failed: {reasons}",
            key="verification",
            expected="no test that fails, or a waiver for each that does",
            remedy=f"Mend what they name, or leave the clips out; or build it with {options}",
        )
    bundle, report = assemble(
        candidates, target, name=name, version=version, robot=robot, select=selection.to_dict(), waivers=waivers,
        checks=checks, verification=verification.to_dict(), report_name=f"verification_v{version}.json",
    )  # fmt: skip
    return bundle, report | checks
