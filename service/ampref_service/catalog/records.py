"""What queries return: plain frozen values, nothing of the database in them.

Times are epoch seconds (UTC). A metric that could not be computed is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from amp_core.lineage import Lineage
from amp_core.recipe import GATE_PROFILE, PhysicsScale
from amp_core.strict_json import json_data

T = TypeVar("T")

JSON_TYPE = "application/json"
"""The media type of all files of a version but its features."""

_ETA_FROM = 0.02
"""The share of a job from which on its rate says something; before that, starting up is most of the time."""


@dataclass(frozen=True, kw_only=True)
class ClipUpload:
    """An upload that was stored and checked.

    Args:
      name: what people call it.
      robot, robot_digest: the robot it is for, and the digest of its model.
      source_digest: `sha256:…` of the uploaded bytes.
      source_format: `pkl`, `npz`, `json` or `csv`.
      read_options: what else the reader needs (for CSV its `fps` and `quat_order`); part of the clip's identity.
      blob_digest: where the bytes are stored.
      size: bytes of the upload.
      frames_in, fps_in, duration_sec: of the motion as it was uploaded.
      tags: labels; added to the clip's tags when the clip exists already.
      parent_id: of a variant, the clip that it was made from.
    """

    name: str
    robot: str
    robot_digest: str
    source_digest: str
    source_format: str
    blob_digest: str
    size: int
    frames_in: int
    fps_in: float
    duration_sec: float
    read_options: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    parent_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewClip(ClipUpload):
    """An upload that is ready to be a clip.

    Args:
      lineage: of a variant; None for an original. Without a `parent_id`, the clip with the parent's bytes is the parent.
    """

    lineage: Lineage | None = None


@dataclass(frozen=True, kw_only=True)
class Clip(ClipUpload):
    """A clip in the catalog, without its results; `amp_core.lineage.LINEAGE_COLUMNS` are None for an original."""

    id: str
    created_at: float
    actor: str
    parent_digest: str | None
    ancestor_digest: str | None
    augmentation: str | None

    @property
    def parent(self) -> str | None:
        """The id of the clip that it was made from; None for an original, and while that clip is not in this catalog."""
        return self.parent_id

    @property
    def lineage(self) -> str:
        """What a clip and all its variants share: the digest of the original's bytes."""
        return self.ancestor_digest or self.source_digest


@dataclass(frozen=True, kw_only=True)
class ListedClip(Clip):
    """A clip in the curriculum, with the rollout that speaks for it; None until one was scored."""

    rollout: RolloutSummary | None


@dataclass(frozen=True)
class RecipeRow:
    """A recipe: its digest, its mode and its canonical dictionary (`Recipe.to_dict()`)."""

    digest: str
    mode: str
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """Frames `start ≤ k < end` of a rollout that pass a tier on their own."""

    start: int
    end: int
    tier: int
    score: float | None


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """The result of a rollout job.

    Args:
      mode: the mode that made it, never `auto`.
      tier: 0, 1 or -1; `tier_reason` says why.
      gate_profile: e.g. `amp-0.11`.
      metrics: by the names of `amp_core.metrics.METRICS`; every one must be present.
      segments: windows that pass on their own.
      frames, duration_sec: of the rollout at control rate.
      arrays_digest, arrays_size: the export npz in the blob store.
      feature_code_hash, mujoco_version: what computed it.
      result: the document `Score.to_dict()`: gates, segments with metrics, ingest report, provenance, warnings.
    """

    mode: str
    tier: int
    tier_reason: str
    gate_profile: str
    metrics: Mapping[str, float | int | None]
    frames: int
    duration_sec: float
    arrays_digest: str
    arrays_size: int
    feature_code_hash: str
    mujoco_version: str
    result: Mapping[str, Any]
    segments: Sequence[Segment] = ()


@dataclass(frozen=True, kw_only=True)
class NewRollout(RolloutResult):
    """A result to store, under `recipe` or, where that is None, under the job's own.

    In mode `auto` a job makes rollouts under recipes of other modes.
    """

    recipe: RecipeRow | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout(RolloutResult):
    """A scored rollout of a clip under a recipe."""

    id: str
    clip_id: str
    recipe_digest: str
    created_at: float
    thumbnail_digest: str | None = None

    @property
    def thumbnail_url(self) -> str | None:
        """Where its thumbnail is; None until it was made."""
        return thumbnail_url(self.id, self.thumbnail_digest)


def thumbnail_url(rollout_id: str, digest: str | None) -> str | None:
    """The path of a rollout's thumbnail, where there is one."""
    return None if digest is None else f"/v1/rollouts/{rollout_id}/thumbnail"


@dataclass(frozen=True, kw_only=True)
class RolloutSummary:
    """A rollout in a list: no result document, no segments."""

    id: str
    recipe_digest: str
    mode: str
    tier: int
    tier_reason: str
    frames: int
    gate_profile: str
    feature_code_hash: str
    arrays_digest: str
    arrays_size: int
    created_at: float
    metrics: Mapping[str, float | int | None]
    thumbnail_digest: str | None = None

    @property
    def thumbnail_url(self) -> str | None:
        """Where its thumbnail is; None until it was made."""
        return thumbnail_url(self.id, self.thumbnail_digest)


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some items, and the cursor to the next ones; None at the end of the list."""

    items: tuple[T, ...]
    next_cursor: str | None


class Puller(NamedTuple):
    """Who pulls a version.

    Args:
      caller: as audit rows name it.
      client: `ampref/VERSION`, or `other`.
    """

    version_id: str
    caller: str
    client: str


@dataclass(frozen=True)
class VersionPulls:
    """The pulls of a version by one caller with one kind of client."""

    caller: str
    client: str
    first_at: float
    last_at: float
    pulls: int


@dataclass(frozen=True)
class MemberOrigin:
    """Frames of a rollout in a version, and where they are from.

    Args:
      mode, bucket, lineage: None where the clip or the rollout was deleted, after the version was archived.
      augmentation: None for an original, or where it is not known.
    """

    position: int
    clip_id: str
    rollout_id: str
    name: str
    start: int
    end: int
    tier: int
    mode: str | None
    bucket: str | None
    lineage: str | None
    augmentation: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Histogram:
    """The distribution of one metric among clips.

    Args:
      edges: of the bins, ascending round numbers; none where no clip has a value.
      counts: clips in each bin: at its lower edge or above, below the upper one. The last bin of a metric that is no integer
        also holds its upper edge, unless values lie beyond.
      below, above: clips before the first edge and after the last.
      missing: clips without a value.
      total: all of these.
      low, high: the least and the greatest value.
    """

    metric: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    above: int
    missing: int
    total: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class FacetValue:
    """A value that clips can be filtered by, None for the tier of clips without a result, and how many clips have it."""

    value: str | int | None
    clips: int


@dataclass(frozen=True)
class Facets:
    """How many clips a query has, and would have with each value of a filter."""

    total: int
    tier: tuple[FacetValue, ...]
    robot: tuple[FacetValue, ...]
    mode: tuple[FacetValue, ...]
    gate_profile: tuple[FacetValue, ...]
    tag: tuple[FacetValue, ...]


@dataclass(frozen=True)
class Worker:
    """A process that runs jobs.

    Args:
      machine: where it runs, the same for every container of one machine.
      release: of this software.
      robots: names and digests of what it has installed.
      concurrency: jobs that it runs at a time.
      state: `working`, `paused` (its machine failed; it takes no job until a probe goes well) or `stopping`.
      reason: why it is paused.
      jobs: that it has brought to an end; `host_faults`: that it gave back because its machine failed.
      live: whether it was seen lately.
    """

    id: str
    name: str
    host: str
    machine: str
    pid: int
    release: str
    robots: Mapping[str, str]
    concurrency: int
    state: str = "working"
    reason: str | None = None
    started_at: float = 0.0
    seen_at: float = 0.0
    jobs: int = 0
    host_faults: int = 0
    live: bool = True


@dataclass(frozen=True)
class JobTerms:
    """On what terms a job is queued.

    Args:
      max_attempts: before it is quarantined.
      owner: the id of the key that queues it, empty without one: owners take turns.
      priority: -10 to 10 among the jobs of its owner; higher is earlier.
      limit_rollout: s that one attempt may take, for a clip of so many seconds and a recipe; None: the worker's own limit.
      key: whose quotas hold; None: none do.
    """

    max_attempts: int = 3
    owner: str = ""
    priority: int = 0
    limit_rollout: Callable[[float, RecipeRow], float] | None = None
    key: Key | None = None


USUAL_TERMS = JobTerms()


@dataclass(frozen=True)
class Job:
    """A row of the job table. `revision` grows with every change that a watcher should see.

    `worked_sec` is worker time of all attempts, `limit_sec` what one may take. `losses` counts the workers that were lost with
    it, `faults` how often in a row its worker's machine failed; neither is an attempt. `failed_on` is the worker of the last
    failed attempt, `several` once there were two.
    """

    id: str
    kind: str
    state: str
    clip_id: str | None
    recipe_digest: str | None
    version_id: str | None
    payload: Mapping[str, Any]
    attempts: int
    max_attempts: int
    not_before: float
    created_at: float
    started_at: float | None
    finished_at: float | None
    updated_at: float
    revision: int
    worker: str | None
    token: int
    lease_until: float | None
    cancel_requested: bool
    progress: float
    message: str | None
    error: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    actor: str
    owner: str
    priority: int
    robot: str
    robot_digest: str
    worked_sec: float
    limit_sec: float | None
    losses: int
    faults: int
    failed_on: str | None

    @property
    def dataset(self) -> str | None:
        """Of a lock job."""
        return self.payload.get("dataset")

    @property
    def version(self) -> str | None:
        """Of a lock job."""
        return self.payload.get("version")

    @property
    def eta_sec(self) -> float | None:
        """s that a running job still takes if it goes on as it has since it was started, as of `updated_at`.

        None while too little is done to tell.
        """
        if self.state != "running" or self.started_at is None or self.progress < _ETA_FROM:
            return None
        return max(0.0, self.updated_at - self.started_at) * (1.0 - self.progress) / self.progress

    @property
    def finished(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in ("succeeded", "failed", "quarantined", "cancelled")


@dataclass(frozen=True)
class Submission:
    """The outcome of an upload or of a request for a rollout.

    `new_clip` and `new_job` say what was added. When neither was, clip and recipe were known: `rollout` is the result where
    there is one already, `job` the job that made it or is about to. `notes` say what of the upload was not believed.
    """

    clip: Clip
    job: Job | None
    rollout: Rollout | None
    new_clip: bool
    new_job: bool
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def is_known(self) -> bool:
        """Whether clip and recipe were known before: there is nothing to wait for but what is under way already."""
        return self.rollout is not None or not self.new_job


@dataclass(frozen=True)
class DeletedClip:
    """A deleted clip: the jobs that were cancelled, and the blobs that nothing names any more."""

    id: str
    name: str
    cancelled_jobs: tuple[str, ...]
    blobs: tuple[str, ...]


@dataclass(frozen=True)
class Select:
    """Which rollouts a version takes.

    One rollout stands for each clip: of those that one gate profile judged, its best one in the robot's own physics, or its
    best of these in `mode`; or the one of `recipe`, whatever its physics and profile; with `buckets`, the best one of each
    bucket. It is taken when its tier is one of `tiers` and the clip fits the other filters. With `segments`, a clip whose
    rollout is of another tier gives its windows of those tiers.

    Args:
      tiers: 0, 1 or both; default Tier 0 only. What was Rejected is in no version.
      robot: the version's robot; a version holds one robot's clips.
      mode, recipe: see above.
      tags: the clip must have all of them.
      clips: ids or names; empty means all.
      segments: see above.
      buckets: the physics to take each clip in, `PhysicsScale()` for the robot's own; `all` means whatever it was scored in;
        None means the robot's own alone.
      gate_profile: the profile that judged them; None means that of new recipes or, with `recipe`, the recipe's.
    """

    robot: str
    tiers: tuple[int, ...] = (0,)
    mode: str | None = None
    recipe: str | None = None
    tags: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()
    segments: bool = False
    buckets: Literal["all"] | tuple[PhysicsScale, ...] | None = None
    gate_profile: str | None = None

    @property
    def profile(self) -> str:
        """The gate profile whose verdicts count, where no recipe is asked for."""
        return self.gate_profile or GATE_PROFILE

    def to_dict(self) -> dict[str, Any]:
        """As JSON, the way the version stores it."""
        document: dict[str, Any] = json_data(self)
        return document

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Select:
        """Back from `to_dict`, also of a release that knew no buckets."""
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        if isinstance(value.get("buckets"), list):
            fields["buckets"] = tuple(PhysicsScale(**factors) for factors in value["buckets"])
        return cls(**fields)


@dataclass(frozen=True)
class SelectedRollout:
    """A rollout that goes into a version, with the frame ranges `(start, end, tier)` that it gives.

    `range_metrics` has, of each range, the metrics that its sampling weight is made of; `physics` are the factors on friction,
    mass and damping that it was simulated with; `generator_version` is that of its recipe.
    """

    clip_id: str
    rollout_id: str
    name: str
    source_digest: str
    robot_digest: str
    recipe_digest: str
    mode: str
    tier: int
    gate_profile: str
    frames: int
    ranges: tuple[tuple[int, int, int], ...]
    metrics: Mapping[str, float | int | None]
    arrays_digest: str
    feature_code_hash: str
    mujoco_version: str
    range_metrics: tuple[Mapping[str, float | int | None], ...] = ()
    parent_digest: str | None = None
    ancestor_digest: str | None = None
    augmentation: str | None = None
    physics: Mapping[str, float] | None = None
    generator_version: str | None = None


@dataclass(frozen=True)
class RolloutSource:
    """What a rollout was generated from.

    Args:
      recipe: as JSON has it.
      attempt: of a planned rollout, which plan was kept; else 0.
      blob_digest: where the clip's bytes are.
      source_format, read_options: how they are read.
    """

    recipe: Mapping[str, Any]
    attempt: int
    blob_digest: str
    source_format: str
    read_options: Mapping[str, Any]


@dataclass(frozen=True)
class VersionBucket:
    """What a version holds of one bucket: rollouts and frames."""

    name: str
    physics: Mapping[str, float]
    num_clips: int
    num_frames: int


@dataclass(frozen=True)
class VersionFile:
    """An artifact of a version: its name, where its bytes are, and how many."""

    name: str
    digest: str
    size: int
    media_type: str = "application/octet-stream"

    @property
    def is_kept(self) -> bool:
        """Whether an archived version keeps it: manifest, statistics and verification, but not the features."""
        return self.media_type == JSON_TYPE


@dataclass(frozen=True)
class VersionMember:
    """Frames `start ≤ k < end` of one rollout in a version; `position` is the segment's number in it."""

    clip_id: str
    rollout_id: str
    name: str
    start: int
    end: int
    tier: int
    position: int = -1


@dataclass(frozen=True)
class Version:
    """A version of a dataset. Only `state == "locked"` ones are shown to users."""

    id: str
    dataset: str
    version: str
    state: str
    robot: str
    select: Mapping[str, Any]
    created_at: float
    locked_at: float | None
    actor: str
    dataset_hash: str | None
    feature_code_hash: str | None
    manifest_digest: str | None
    num_clips: int | None
    num_frames: int | None
    readiness: Mapping[str, Any] | None
    yanked_at: float | None
    yank_reason: str | None
    archived_at: float | None
    archived_by: str | None
    archive_reason: str | None
    files: tuple[VersionFile, ...] = ()

    @property
    def yanked(self) -> bool:
        """Whether its owner asks that nobody starts to use it."""
        return self.yanked_at is not None

    @property
    def archived(self) -> bool:
        """Whether its features are not kept any more."""
        return self.archived_at is not None


@dataclass(frozen=True)
class Dataset:
    """A dataset: its locked versions, newest first, its aliases (alias → version) and what `latest` means now."""

    name: str
    created_at: float
    latest: str | None
    aliases: Mapping[str, str]
    versions: tuple[Version, ...]

    @property
    def num_versions(self) -> int:
        return len(self.versions)


@dataclass(frozen=True)
class Bounds:
    """What a caller may reach of the catalog; None means all.

    Args:
      datasets: exact names, or `prefix*`.
      robots: exact names; of clips, their rollouts and jobs, and of datasets.
    """

    datasets: tuple[str, ...] | None = None
    robots: tuple[str, ...] | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is out of reach."""
        return self.datasets is None and self.robots is None

    def includes_dataset(self, name: str) -> bool:
        """Whether a dataset of this name is within reach, as far as its name tells."""
        return self.datasets is None or any(
            name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in self.datasets
        )

    def includes_robot(self, name: str) -> bool:
        """Whether what is of a robot is within reach."""
        return self.robots is None or name in self.robots

    def covers(self, narrow: Bounds) -> bool:
        """Whether nothing is within reach of `narrow` and out of reach of these."""
        if self.datasets is not None:
            if narrow.datasets is None:
                return False
            # Where a pattern begins with another's prefix, so does every name of it.
            prefixes = tuple(pattern[:-1] for pattern in self.datasets if pattern.endswith("*"))
            if not all(name in self.datasets or name.startswith(prefixes) for name in narrow.datasets):
                return False
        return self.robots is None or (narrow.robots is not None and set(narrow.robots) <= set(self.robots))


NO_BOUNDS = Bounds()


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key to be made.

    Args:
      name: unique among the keys that are not revoked.
      digest: SHA-256 of the key's text, which is stored nowhere.
      hint: its last characters.
      scopes: what it permits.
      bounds: what it reaches.
      expires_in_sec: None for never.
      max_bytes, max_queued, max_planning_sec: its quotas; None for none.
    """

    name: str
    digest: str = field(repr=False)
    hint: str
    scopes: tuple[str, ...]
    bounds: Bounds = NO_BOUNDS
    expires_in_sec: float | None = None
    max_bytes: int | None = None
    max_queued: int | None = None
    max_planning_sec: float | None = None

    @property
    def has_quota(self) -> bool:
        return (self.max_bytes, self.max_queued, self.max_planning_sec) != (None, None, None)


@dataclass(frozen=True, kw_only=True)
class Key(NewKey):
    """A key in the catalog. `is_expired` and `expires_in_sec` are as of when it was read, by the catalog's clock."""

    id: str
    created_at: float
    created_by: str
    expires_at: float | None
    last_used_at: float | None
    revoked_at: float | None

    @property
    def actor(self) -> str:
        """What audit rows and clips name."""
        return f"key:{self.name}"

    @property
    def is_expired(self) -> bool:
        return self.expires_in_sec is not None and self.expires_in_sec <= 0

    @property
    def is_valid(self) -> bool:
        return self.revoked_at is None and not self.is_expired


@dataclass(frozen=True)
class KeyUsage:
    """What a key has used of its quotas: bytes of its clips, jobs that wait or run, and seconds of work in 24 hours."""

    bytes: int
    queued: int
    planning_sec: float


@dataclass(frozen=True)
class PurgeFilter:
    """What a purge deletes.

    Args:
      tier: `rejected`: clips whose best rollout is; `unscored`: clips without a rollout.
      older_than_days: the least age of the clip and of each of its rollouts.
      robot: only clips for it; None for all.
      unreferenced_rollouts: no clip, but Rejected rollouts that are not the best of their clip, mode and profile.
      bounds: of whoever purges.
    """

    tier: Literal["rejected", "unscored"]
    older_than_days: float
    robot: str | None = None
    unreferenced_rollouts: bool = False
    bounds: Bounds = NO_BOUNDS


@dataclass(frozen=True)
class PurgeReport:
    """What a purge deleted, or would delete: counts, bytes, clips that have passing windows, and names of some clips."""

    clips: int = 0
    rollouts: int = 0
    num_bytes: int = 0
    with_windows: int = 0
    names: tuple[str, ...] = ()

    def add(self, part: PurgeReport) -> PurgeReport:
        """The sum of both; the names of neither."""
        return PurgeReport(self.clips + part.clips, self.rollouts + part.rollouts, self.num_bytes + part.num_bytes)


@dataclass(frozen=True)
class AuditEvent:
    """Somebody changed something."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


EventKind = Literal[
    "clip.scored",
    "clip.deleted",
    "version.locked",
    "version.yanked",
    "version.unyanked",
    "version.archived",
    "version.unarchived",
    "job.quarantined",
    "job.failed",
]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


@dataclass(frozen=True)
class Event:
    """Something that happened, at its place in the stream."""

    position: int
    id: str
    at: float
    kind: str
    dataset: str | None
    robot: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True)
class EventGap:
    """Events after `after` that are kept no longer; the oldest that is has the position `oldest`, or will have it."""

    after: int
    oldest: int


@dataclass(frozen=True)
class EventFilter:
    """Which events are wanted; no kinds are all of them, and None is any dataset or robot.

    Args:
      bounds: of the reader. An event of no dataset, such as a clip's, is within any bounds of datasets.
    """

    kinds: tuple[str, ...] = ()
    dataset: str | None = None
    robot: str | None = None
    bounds: Bounds = NO_BOUNDS

    def matches(self, event: Event) -> bool:
        """Whether the event is wanted and within reach."""
        return (
            (not self.kinds or event.kind in self.kinds)
            and self.dataset in (None, event.dataset)
            and self.robot in (None, event.robot)
            and (event.dataset is None or self.bounds.includes_dataset(event.dataset))
            and self.bounds.includes_robot(event.robot or "")
        )


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """An address that events are sent to.

    Args:
      owner, key_id: who made it, as a `Caller` has it, and with which key.
      state: `active` or `quarantined`, for this `reason`.
      position: how far it is; `pending` events come behind that, of whatever kind.
      failures: how often in a row its next event could not be delivered; `last_failure` says how.
      test: `{id, state, detail, at}` of the last test: `pending`, `delivered` or `failed`.
    """

    id: str
    url: str
    criteria: EventFilter
    owner: str
    key_id: str | None
    created_at: float
    state: str
    reason: str | None
    position: int
    pending: int
    delivered_at: float | None
    failures: int
    last_failure: str | None
    not_before: float
    test: Mapping[str, Any] | None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that it gets; none are all."""
        return self.criteria.kinds

    @property
    def dataset(self) -> str | None:
        """The dataset whose events it gets; None for all."""
        return self.criteria.dataset

    @property
    def robot(self) -> str | None:
        """The robot whose events it gets; None for all."""
        return self.criteria.robot


@dataclass(frozen=True)
class WebhookClaim:
    """A webhook that this deliverer serves while its lease lasts; `test_id` is set where a test is to be sent."""

    webhook: Webhook
    secret: str = field(repr=False)
    token: int
    test_id: str | None


@dataclass(frozen=True)
class EventPage:
    """Events in order, the position to ask from next, and what the cursor has missed."""

    items: tuple[Event, ...]
    next_after: int
    gap: EventGap | None
