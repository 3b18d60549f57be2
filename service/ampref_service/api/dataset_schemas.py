"""What datasets and versions are in requests and responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from amp_core.readiness import MAX_REASON, TEST_IDS
from amp_core.recipe import SCALE_RANGE, PhysicsScale
from amp_core.tiers import GATE_PROFILES
from ampref_service.api.jobs import JobView
from ampref_service.api.pages import PageView
from ampref_service.api.params import (
    PRINTABLE,
    Body,
    Digest,
    ExactVersion,
    LockableTier,
    Mode,
    Name,
    Note,
    Priority,
    RobotName,
    Tag,
    Time,
    View,
)
from ampref_service.catalog.records import Select


class FileView(View):
    """One of a version's three files."""

    name: str
    sha256: str = Field(
        validation_alias=AliasChoices("sha256", "digest"), description="`sha256:…` of its bytes; also its ETag."
    )
    size: int = Field(description="bytes")
    media_type: str
    url: str


class VersionSummary(View):
    """A locked version in a list."""

    dataset: str
    version: str
    robot: str
    created_at: Time
    locked_at: Time | None
    dataset_hash: str | None = Field(description="SHA-256 of the feature rows.")
    num_clips: int | None
    num_frames: int | None
    yanked: bool
    yank_reason: str | None
    archived: bool = Field(description="Its features are not kept, and their address answers 410.")
    archived_at: Time | None
    archived_by: str | None
    archive_reason: str | None


class BucketView(View):
    """What a version holds of one bucket of physics; the manifest has its rows and statistics."""

    name: str = Field(description="`canonical` for the robot's own physics, or its factors: `friction=0.7,mass=1.1`.")
    physics: dict[str, float] = Field(description="Factors on `friction`, `mass` and `damping`.")
    num_clips: int
    num_frames: int


class VersionView(VersionSummary):
    """A locked version: its selection, readiness, coverage, files and names."""

    asked_for: str = Field(description="The version, `latest` or alias in the address; `version` is what it means now.")
    select: dict[str, Any]
    feature_code_hash: str | None
    manifest_sha256: str | None = Field(description="Pin this in a training config.")
    readiness: dict[str, Any] | None = Field(
        description="The training-readiness checklist, as of the lock: `ready`, `groups` of criteria with status and evidence, "
        "each of the `tests` with status and reason, `waivers`, and the `checks` of every member. Only `checks` where it was "
        "locked before there were tests."
    )
    verification_url: str | None = Field(
        description="The report of the tests, as JSON or as a page; null where it was locked before there were tests."
    )
    coverage: dict[str, Any] | None = Field(
        description="The manifest's `coverage`: seconds by tier, source and speed, stance, feature space. "
        "Null where it was locked before there were any."
    )
    buckets: list[BucketView] = Field(description="By the physics that the clips were simulated in, the robot's own first.")
    aliases: list[str] = Field(description="That point to this version now; `latest` among them.")
    files: list[FileView]
    download_origin: str | None = Field(
        None, description="Where else a GET of these files may send the reader, as `scheme://host[:port]`; nowhere else."
    )
    manifest_url: str | None


class DatasetView(View):
    """A dataset: its locked versions, newest first, and what its aliases mean now."""

    name: str
    created_at: Time
    latest: str | None = Field(description="The highest version that is locked, not yanked, not archived and no pre-release.")
    aliases: dict[str, str]
    versions: list[VersionSummary]


class DatasetSummary(View):
    """A dataset in a list."""

    name: str
    created_at: Time
    latest: str | None
    aliases: dict[str, str]
    num_versions: int


class DatasetList(BaseModel):
    """Every dataset that has a locked version."""

    items: list[DatasetSummary]


_Factor = Annotated[float, Field(ge=SCALE_RANGE[0], le=SCALE_RANGE[1], allow_inf_nan=False)]


class PhysicsBody(Body):
    """A bucket: factors on the robot's own physics; what is left out is 1."""

    friction: _Factor = 1.0
    mass: _Factor = 1.0
    damping: _Factor = 1.0


class SelectBody(Body):
    """Which rollouts a version takes: for each clip its best one by the gate profile in the robot's own physics, or its best in
    `mode`, or the one of `recipe`; with `buckets`, its best one in each of them.

    A rollout in scaled physics is taken only when its `recipe` or its bucket is named.
    """

    robot: RobotName | None = Field(
        None, description="Left out: the dataset's, or that of the clips that fit by tags and names, where they are of one."
    )
    tier: Annotated[LockableTier | list[LockableTier], Field(description="0, 1 or both; Tier 0 alone is for training.")] = 0
    mode: Mode | None = None
    recipe: Annotated[Digest | None, Field(description="A recipe's digest.")] = None
    tags: list[Tag] = Field(default_factory=list, max_length=50, description="The clip has all of them.")
    clips: list[Name] = Field(default_factory=list, max_length=100_000, description="Ids or names; empty: all.")
    segments: Annotated[bool, Field(description="Take passing windows of clips that fail as a whole, too.")] = False
    buckets: Annotated[
        Literal["all"] | Annotated[list[PhysicsBody], Field(min_length=1, max_length=100)] | None,
        Field(
            description="The physics to take each clip in, `{}` being the robot's own; `all`: in each that it was scored in."
        ),
    ] = None

    gate_profile: Annotated[
        Literal[tuple(GATE_PROFILES)] | None,  # type: ignore[valid-type]
        Field(
            description="Take the rollouts that this gate profile judged; left out: that of new recipes or, with `recipe`, the "
            "recipe's."
        ),
    ] = None

    def to_select(self) -> Select:
        """The selection for the catalog, where each tier and each bucket is there once; its robot may be missing ("")."""
        buckets: Literal["all"] | tuple[PhysicsScale, ...] | None
        if isinstance(self.buckets, list):
            buckets = tuple(sorted({PhysicsScale(**bucket.model_dump()) for bucket in self.buckets}))
        else:
            buckets = self.buckets
        return Select(
            robot=self.robot or "",
            **self.model_dump(include={"mode", "recipe", "segments", "gate_profile"}),
            tiers=tuple(dict.fromkeys(self.tier if isinstance(self.tier, list) else [self.tier])),
            tags=tuple(self.tags),
            clips=tuple(self.clips),
            buckets=buckets,
        )


class WaiverBody(Body):
    """A readiness test whose failure does not stop the lock, and the reason."""

    test: Literal[TEST_IDS] = Field(description="The test's id.")  # type: ignore[valid-type]
    reason: Annotated[str, PRINTABLE] = Field(max_length=MAX_REASON, description="For those who train on the version.")


class LockBody(Body):
    """A version to be locked."""

    version: ExactVersion
    select: SelectBody = Field(default_factory=SelectBody)
    waivers: list[WaiverBody] = Field(
        default_factory=list,
        max_length=len(TEST_IDS),
        description="Readiness tests whose failure does not stop the lock; the manifest keeps them, each test once.",
    )
    priority: Priority = 0


class Locking(BaseModel):
    """A version that is being locked: follow the job; the version appears when it has succeeded."""

    dataset: str
    version: str
    state: Literal["locking"]
    select: dict[str, Any]
    job: JobView
    other_profile_clips: Annotated[
        int, Field(description="Clips that are not in it because another gate profile passed them and this one did not.")
    ]
    pending_clips: Annotated[
        int,
        Field(
            description="Clips that fit by robot, tags and names and are still being scored, perhaps too late for this version."
        ),
    ]
    pending_names: Annotated[list[str], Field(description="The first of these clips, by name.")]


class AliasBody(Body):
    """What an alias is to mean."""

    version: ExactVersion


class YankBody(Body):
    """Why nobody should start to use a version."""

    reason: Note


class ArchiveBody(Body):
    """Why the features of a version are not needed any more, and which version that is."""

    reason: Note
    expected_manifest_sha256: Digest = Field(description="The version's `manifest_sha256`, as it was looked at.")
    dry_run: bool = Field(False, description="Only refuse what would be refused.")


class ArchiveView(VersionView):
    """A version that is archived or, of a dry run, would be."""

    free_clips: int = Field(description="Its clips that no other version holds: they may be deleted while it is archived.")
    purgeable_clips: int = Field(
        description="Those of them that a purge takes once they are old enough, since no rollout passes."
    )


class MemberView(View):
    """Frames of one rollout in a version: a segment of it."""

    position: int = Field(description="The segment's number in the version.")
    clip_id: str
    rollout_id: str
    name: str
    start: int
    end: int = Field(description="Half-open: the frames `start ≤ k < end` of the rollout.")
    tier: int


class MemberPage(PageView[MemberView]):
    """Segments of a version, in their order."""


class PullsView(View):
    """The pulls of a version by one caller with one kind of client."""

    caller: str = Field(description="`key:NAME`, `user:NAME` of a proxy, or `anonymous`.")
    client: str = Field(description="`ampref/VERSION`, `ampref` of a release before it told, or `other`.")
    first_at: Time
    last_at: Time
    pulls: int


class PullList(BaseModel):
    """Who pulled a version."""

    items: list[PullsView]


class BinsView(View):
    """Rows by the value of a feature."""

    edges: list[float]
    counts: list[int]
    below: int
    above: int


class OutlierView(View):
    """A frame whose value lies far from the mean; the furthest of its segment."""

    clip_id: str
    rollout_id: str
    name: str
    frame: int = Field(description="Of the rollout.")
    value: float
    z: float = Field(description="Standard deviations from the mean.")


class FeatureStatisticsView(View):
    """How one feature is spread over the rows of a version."""

    name: str
    unit: str
    block: str
    mean: float
    std: float
    min: float
    max: float
    p01: float
    p50: float
    p99: float
    histogram: BinsView | None = Field(description="32 bins; null where all rows have one value.")
    outliers: list[OutlierView] = Field(description="Up to five segments whose furthest frame has a z beyond `outlier_z`.")


class ShareView(View):
    """What a version has of one kind."""

    name: str | int | None = Field(description="Null: not known any more.")
    clips: int
    seconds: float
    share: float = Field(description="Of the frames.")
    weight_share: float = Field(description="Of the sampling weight.")


class SourceShareView(ShareView):
    """What a version has of one source clip and its variants."""

    digest: str | None
    clip_id: str | None = Field(description="Of the source, where it is in the catalog.")


class BalanceView(View):
    """What a version is made of, the most frames first."""

    num_sources: int
    sources: list[SourceShareView] = Field(description="The first 100.")
    augmentations: list[ShareView] = Field(description="Without parameters: `original`, `mirror`, `mirror+warp`.")
    tags: list[ShareView] = Field(description="The first 50; a clip counts in each of its tags.")
    modes: list[ShareView]
    buckets: list[ShareView]
    tiers: list[ShareView]


class AxisView(View):
    """Cells of one width, the first of which begins at `from`."""

    unit: str
    bin: float
    begin: float = Field(alias="from")


class TurningView(View):
    """Rows by forward speed and turning rate."""

    speed: AxisView
    turn: AxisView
    frames: list[list[int]] = Field(description="A list for each cell of the speed.")


class PhaseView(View):
    """Rows in which exactly these feet touch the ground."""

    feet: list[str]
    frames: int


class VersionStatisticsView(BaseModel):
    """A version's rows for people."""

    dataset: str
    version: str
    num_frames: int
    control_dt: float = Field(description="s, the duration of a frame.")
    outlier_z: float
    features: list[FeatureStatisticsView]
    turning: TurningView
    phases: list[PhaseView]
    balance: BalanceView


class TakenView(View):
    """What a version takes of one clip in one bucket."""

    clip_id: str
    name: str
    bucket: str
    rollout_id: str
    tiers: list[int]
    ranges: list[tuple[int, int]] = Field(description="Half-open frame ranges of the rollout.")
    frames: int


class ChangedView(View):
    """A clip that both versions hold in the same bucket, with another rollout or other frames."""

    before: TakenView
    after: TakenView


class DiffView(BaseModel):
    """From one version to another."""

    dataset: str
    before: str
    after: str
    same_features: bool = Field(description="Whether the feature rows are the same, bit for bit.")
    added: list[TakenView]
    removed: list[TakenView]
    changed: list[ChangedView]
    unchanged: int
