"""What the client reads in a service's answers, and the one place where an answer is compared with that.

Each class lists the keys that the client and the command rely on; a service may send more. Keys that came with a later release
are not required, so that an older service can be asked.
"""

# No postponed annotations: `NotRequired` must be seen when a class is made.

import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["AnswerFault", "check_answer"]

TierNumber = Literal[0, 1, -1]
TierKey = Literal["0", "1", "-1"]
JobState = Literal["queued", "running", "succeeded", "failed", "quarantined", "cancelled"]
Metrics = dict[str, float | None]


class Problem(TypedDict):
    detail: NotRequired[str | None]


class JobResult(TypedDict):
    rollout_id: NotRequired[str]


class Job(TypedDict):
    id: str
    kind: str
    state: JobState
    progress: float
    attempts: int
    max_attempts: int
    message: NotRequired[str | None]
    eta_sec: NotRequired[float | None]
    error: NotRequired[Problem | None]
    result: JobResult | None


class JobPage(TypedDict):
    items: list[Job]
    next_cursor: NotRequired[str | None]


class RolloutSummary(TypedDict):
    id: str
    mode: str
    tier: TierNumber
    tier_reason: str
    frames: int
    gate_profile: str
    quality_metrics: Metrics


class ClipRollout(RolloutSummary):
    bucket: str


class Segment(TypedDict):
    start: int
    end: int


class Message(TypedDict):
    message: str


class Finding(Message):
    severity: str


class Diagnosis(TypedDict):
    findings: NotRequired[list[Finding]]
    suggestions: NotRequired[list[Message]]


class Ingest(TypedDict):
    notes: NotRequired[list[str]]


class Provenance(TypedDict):
    attempt: NotRequired[int | None]


class Rollout(ClipRollout):
    clip_name: str
    duration_sec: float
    segments: list[Segment]
    diagnosis: NotRequired[Diagnosis | None]
    contact_warnings: NotRequired[list[Message]]
    ingest: NotRequired[Ingest]
    recipe_digest: str
    arrays_digest: str
    recipe: dict[str, Any]
    provenance: Provenance


class ReadOptions(TypedDict):
    fps: NotRequired[float | None]
    quat_order: NotRequired[str | None]


class ClipSummary(TypedDict):
    id: str
    name: str
    robot: str
    source_digest: str
    source_format: str
    frames_in: int
    fps_in: float
    duration_sec: float
    tags: list[str]
    created_at: str
    parent: NotRequired[str | None]
    parent_digest: NotRequired[str | None]
    augmentation: str | None
    lineage: str
    read_options: ReadOptions


class ListedClip(ClipSummary):
    rollout: RolloutSummary | None


class ClipPage(TypedDict):
    items: list[ListedClip]
    next_cursor: NotRequired[str | None]


class Clip(ClipSummary):
    rollouts: list[ClipRollout]
    jobs: list[Job]


class RolloutId(TypedDict):
    id: str


class SubmitAnswer(TypedDict):
    clip: ClipSummary
    job: Job | None
    rollout: RolloutId | None
    notes: NotRequired[list[str]]


class BatchLine(TypedDict):
    member: NotRequired[str]
    """Not in the last line, which has counts."""
    status: NotRequired[int]
    submitted: NotRequired[SubmitAnswer | None]
    problem: NotRequired[dict[str, Any] | None]


class Seam(TypedDict):
    residual: float


class Variant(SubmitAnswer):
    augmentation: str
    seam: Seam | None


class AugmentAnswer(TypedDict):
    parent: ClipSummary
    variants: list[Variant]


class Robot(TypedDict):
    name: str
    control_dt: float


class RobotName(TypedDict):
    name: str


class RobotList(TypedDict):
    items: list[RobotName]


class VersionSummary(TypedDict):
    dataset: str
    version: str
    robot: str
    num_clips: int
    num_frames: int
    locked_at: str | None
    yanked: bool
    yank_reason: str | None


class DatasetSummary(TypedDict):
    name: str
    latest: str | None
    aliases: dict[str, str]
    num_versions: int


class DatasetList(TypedDict):
    items: list[DatasetSummary]


class Dataset(TypedDict):
    name: str
    latest: str | None
    aliases: dict[str, str]
    versions: list[VersionSummary]


class File(TypedDict):
    url: NotRequired[str]
    name: str
    sha256: str
    size: int


class Bucket(TypedDict):
    name: str
    num_clips: int
    num_frames: int


class TierCoverage(TypedDict):
    tier: TierNumber
    seconds: float
    sources: int


class Source(TypedDict):
    name: str
    seconds: float


class Stance(TypedDict):
    single_share: float
    double_share: float
    flight_share: float
    steps_per_second: float


class EffectiveCount(TypedDict):
    effective: float


class FeatureSpace(TypedDict):
    effective_dimensions: float
    varying_dimensions: int
    poses: EffectiveCount
    velocities: EffectiveCount


Histogram = TypedDict("Histogram", {"seconds": list[float], "from": float, "bin": float, "unit": str})


class Coverage(TypedDict):
    tiers: list[TierCoverage]
    sources: list[Source]
    stance: Stance
    feature_space: FeatureSpace
    forward_speed: Histogram
    lateral_speed: Histogram
    turning_rate: Histogram


class Criterion(TypedDict):
    name: str
    status: str
    evidence: str | None


class Group(TypedDict):
    name: str
    criteria: list[Criterion]


class Waiver(TypedDict):
    test: str
    reason: str


class Check(TypedDict):
    name: NotRequired[str]
    passed: NotRequired[bool]


class Original(TypedDict):
    name: str


class Duplicate(TypedDict):
    name: str
    of: Original


class Checklist(TypedDict):
    ready: NotRequired[bool]
    checks: NotRequired[list[Check] | None]
    groups: NotRequired[list[Group]]
    waivers: NotRequired[list[Waiver]]
    duplicates: NotRequired[list[Duplicate] | None]


class Version(VersionSummary):
    dataset_hash: str
    manifest_sha256: str
    manifest_url: str
    aliases: list[str]
    files: list[File]
    readiness: Checklist | None
    coverage: NotRequired[Coverage | None]
    buckets: NotRequired[list[Bucket] | None]
    download_origin: NotRequired[str | None]


class Yank(TypedDict):
    yanked: bool
    yank_reason: str | None


class Archive(TypedDict):
    archived: bool
    archive_reason: str | None


class ArchiveReport(Archive):
    free_clips: int
    purgeable_clips: int


class Purge(TypedDict):
    clips: int
    rollouts: int
    bytes: int
    with_windows: int
    names: list[str]
    remaining: int


class VersionName(TypedDict):
    version: str


class AliasTarget(TypedDict):
    """What a dataset's aliases mean, as `pull` asks."""

    latest: NotRequired[str | None]
    aliases: NotRequired[dict[str, str]]
    versions: NotRequired[list[VersionName]]


class ManifestDigest(TypedDict):
    """A version as `pull` asks for it; `Readiness` reads the checklist by itself."""

    manifest_sha256: NotRequired[str | None]
    yanked: NotRequired[bool]
    yank_reason: NotRequired[str | None]
    files: NotRequired[list[File]]
    download_origin: NotRequired[str | None]
    readiness: NotRequired[dict[str, Any] | None]


class FoundClip(TypedDict):
    """A clip as `load_clips` asks for it, which checks the rest itself."""

    rollout: NotRequired[dict[str, Any] | None]


class FoundClipPage(TypedDict):
    items: list[FoundClip]
    next_cursor: NotRequired[str | None]


class Gates(TypedDict):
    clips_by_tier: dict[TierKey, int]
    frames_by_tier: dict[TierKey, int]


class ManifestClip(TypedDict):
    recipe_digest: str


class Weighting(TypedDict):
    least: float
    greatest: float
    effective_share: float


class Manifest(TypedDict):
    gates: Gates
    clips: list[ManifestClip]
    weighting: NotRequired[Weighting | None]


class ManifestSegment(TypedDict):
    start: int
    end: int
    tier: TierNumber


class NamedClip(TypedDict):
    name: str
    segments: list[ManifestSegment]


class PulledManifest(TypedDict):
    """A manifest as `pull` reads it, besides what every reader of one checks."""

    clips: list[NamedClip]
    waivers: NotRequired[list[Waiver] | None]


class LockedClip(ManifestClip, NamedClip):
    digest: str
    tier: TierNumber
    quality_metrics: Metrics


class LockedRobot(TypedDict):
    name: str
    digest: str


class LockedManifest(TypedDict):
    """A manifest as `ampref verify` reads it."""

    robot: LockedRobot
    clips: list[LockedClip]
    waivers: list[Waiver]


class Member(TypedDict):
    clip_id: str
    rollout_id: str
    start: int
    end: int
    tier: int


class MemberPage(TypedDict):
    items: list[Member]
    next_cursor: NotRequired[str | None]


class TakenClip(TypedDict):
    name: str
    bucket: NotRequired[str]
    frames: int


class ChangedClip(TypedDict):
    before: TakenClip
    after: TakenClip


class Diff(TypedDict):
    before: str
    after: str
    same_features: bool
    added: list[TakenClip]
    removed: list[TakenClip]
    changed: list[ChangedClip]
    unchanged: int


class Event(TypedDict):
    position: int
    kind: str
    at: str
    dataset: str | None
    data: dict[str, Any]


class Gap(TypedDict):
    after: int
    oldest: int


class EventPage(TypedDict):
    items: list[Event]
    next_after: int
    gap: Gap | None


class WebhookTest(TypedDict):
    state: Literal["pending", "delivered", "failed"]
    detail: str | None


class Webhook(TypedDict):
    id: str
    url: str
    kinds: list[str]
    dataset: str | None
    robot: str | None
    state: str
    reason: str | None
    pending: int
    failures: int
    last_failure: str | None
    test: WebhookTest | None


class NewWebhook(Webhook):
    secret: str


class WebhookList(TypedDict):
    items: list[Webhook]


class LockAnswer(TypedDict):
    job: Job
    pending_clips: int
    pending_names: NotRequired[list[str]]
    other_profile_clips: NotRequired[int]


class AnswerFault(ValueError):
    """An answer is not of the shape that it should have; the message says where and how."""


def check_answer(kind: Any, value: Any, place: str = "the answer") -> None:
    """Compare a decoded answer with one of this module's classes, another type that JSON has, or None for no answer.

    Raises:
      AnswerFault: a key is missing or a value is of another type.
    """
    if kind is Any:
        return
    outer, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        if not isinstance(value, Mapping):
            raise _fault(place, value, "an object")
        hints = _hints(kind)
        for key in kind.__required_keys__ - value.keys():
            raise AnswerFault(f"{place} has no {key!r}")
        for key in hints.keys() & value.keys():
            check_answer(hints[key], value[key], f"{key!r} in {place}" if place == "the answer" else f"{place}.{key}")
    elif outer in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return
        options = [argument for argument in arguments if argument is not type(None)]
        check_answer(options[0], value, place)
    elif outer is Literal:
        if not any(value is option or (type(value) is type(option) and value == option) for option in arguments):
            raise _fault(place, value, f"one of {', '.join(map(str, arguments))}")
    elif outer is list:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _fault(place, value, "a list")
        for index, item in enumerate(value):
            check_answer(arguments[0], item, f"{place}[{index}]")
    elif outer is dict:
        if not isinstance(value, Mapping):
            raise _fault(place, value, "an object")
        for key, item in value.items():
            check_answer(arguments[0], key, f"a key of {place}")
            check_answer(arguments[1], item, f"{place}.{key}")
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _fault(place, value, "a number")
    elif kind is None:
        if value is not None:
            raise _fault(place, value, "nothing")
    elif type(value) is not kind:
        raise _fault(place, value, _NAMES[kind])


_NAMES = {str: "a text", int: "a whole number", bool: "true or false"}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a class's keys, `NotRequired` taken off."""
    return get_type_hints(kind)


def _fault(place: str, value: Any, expected: str) -> AnswerFault:
    kinds = {dict: "an object", list: "a list", type(None): "null", **_NAMES, float: "a number"}
    return AnswerFault(f"{place} is {kinds.get(type(value), 'something else')} instead of {expected}")
