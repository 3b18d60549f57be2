"""What clips are in requests and responses."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from amp_core.metrics import METRICS
from amp_core.recipe import GENERATED_MODES
from amp_core.tiers import GATE_PROFILES
from ampref_service.api.jobs import JobView
from ampref_service.api.pages import PageView
from ampref_service.api.params import Body, Cursor, Id, Mode, Name, Priority, RobotName, Seed, Tag, TierParam, Time, View
from ampref_service.api.rollouts import ClipRolloutView, RolloutSummaryView
from ampref_service.catalog.curriculum import MAX_LIMIT, ClipQuery
from ampref_service.catalog.distribution import FEWEST_BINS, HISTOGRAM_COLUMNS, MOST_BINS
from ampref_service.catalog.tables import SORT_COLUMNS
from ampref_service.errors import ParameterRefused


class ClipView(View):
    """A clip as it was uploaded."""

    id: str
    name: str
    robot: str
    robot_digest: str
    source_digest: str = Field(description="SHA-256 of the uploaded bytes.")
    source_format: str
    read_options: dict[str, Any] = Field(description="`fps` and `quat_order`, where they were given at the upload.")
    size: int = Field(description="bytes")
    frames_in: int
    fps_in: float
    duration_sec: float
    tags: list[str]
    created_at: Time
    parent: str | None = Field(description="Of a variant: the id of the clip that it was made from, while that is here.")
    parent_digest: str | None = Field(description="Of a variant: SHA-256 of the bytes that it was made from.")
    augmentation: str | None = Field(description="Of a variant: what was done, such as `mirror+warp=0.9`.")
    lineage: str = Field(description="What a clip shares with all its variants: SHA-256 of the original's bytes.")


class ListedClipView(ClipView):
    """A clip in the curriculum, with the rollout that represents it."""

    rollout: RolloutSummaryView | None = Field(
        description="Its best rollout, or its best in the mode and by the gate profile asked for; null until scored."
    )


class ClipDetail(ClipView):
    """A clip with all its rollouts, the best first, and its jobs, newest first."""

    rollouts: list[ClipRolloutView]
    jobs: list[JobView]


class ClipPage(PageView[ListedClipView]):
    """A page of the curriculum."""


class Submitted(View):
    """The clip, the job and the result that an upload, or a request for a rollout, leads to."""

    clip: ClipView
    job: JobView | None = Field(description="The job that scores it, or scored it.")
    rollout: RolloutSummaryView | None = Field(description="The result, when it is known already.")
    notes: list[str] = Field(description="What of the file was not believed.")


class SeamView(View):
    """Where a loop closes: frame `end` of the parent is followed by frame `start`."""

    start: int
    end: int
    cycle_sec: float = Field(description="s, of one repetition.")
    residual: float = Field(description="The largest difference of the two frames, as a share of what is allowed; 0 to 1.")
    worst: str = Field(description="Which difference that is.")
    blend_sec: float


class VariantView(Submitted):
    """A variant of a clip with its job and its result."""

    augmentation: str
    seam: SeamView | None = Field(description="Of a loop.")


class Augmented(BaseModel):
    """A clip and the variants that were asked for."""

    parent: ClipView
    variants: list[VariantView]


class ClipTerms(BaseModel):
    """How motion files are read and scored."""

    model_config = ConfigDict(extra="forbid")

    robot: RobotName = Field("wildrobot", description="The robot it was retargeted to.")
    mode: Mode | None = Field(
        None,
        description="`auto` (default), `rollout`, `tracked`, `assisted`, `recorded` or `teacher_forced`, where `recipe` does "
        "not state it.",
    )
    seed: Seed | None = Field(None, description="Of the recipe, where that does not state it; default 0.")
    tags: list[Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=4000)]] = Field(
        default_factory=list, max_length=50, description="Repeat the field, or separate by commas."
    )
    fps: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Frames a second, for formats that do not hold it (CSV)."
    )
    quat_order: Literal["xyzw", "wxyz"] | None = Field(
        None, description="Of the quaternions, for formats that do not hold it (CSV)."
    )
    format: Literal["pkl", "npz", "json", "csv"] | None = Field(
        None, description="Default: by the file name's ending, then by content."
    )
    recipe: Annotated[str, StringConstraints(max_length=20_000)] | None = Field(
        None, description="A recipe as JSON, or the part that differs from the mode's usual one; see `/v1/schema/modes`."
    )
    priority: Priority = 0


class ClipForm(ClipTerms):
    """A motion file and what to do with it."""

    file: UploadFile = Field(description="The motion: `.pkl` (GMR), `.npz`, `.json` or `.csv`.")
    name: Name | None = Field(None, description="The clip's name; default: the file name without its ending.")


class RolloutBody(Body):
    """Which recipe to score a clip with: a mode's usual one, a whole one, or the part that differs."""

    recipe: dict[str, Any] | None = None
    mode: Mode | None = None
    seed: Seed | None = None
    priority: Priority = 0


class AugmentBody(RolloutBody):
    """Which variants of a clip to make, and how to score them."""

    augmentations: list[Annotated[str, StringConstraints(pattern=r"^[a-z0-9=.:+-]{1,120}$")]] = Field(
        min_length=1,
        max_length=20,
        description="`level`, `mirror`, `warp=0.9`, `heading=90`, `loop=3`, several joined by `+`, or `cut=120:480`.",
    )
    tags: list[Tag] = Field(default_factory=list, max_length=50, description="Besides those of the parent.")


class ClipFilter(BaseModel):
    """The filters of the curriculum query, but for the bounds of metrics."""

    tier: TierParam | None = Field(None, description="0, 1, or -1 for Rejected: of the rollout that represents the clip.")
    robot: RobotName | None = Field(None, description="The robot of the clip; one that is installed or has clips.")
    mode: Literal[GENERATED_MODES] | None = Field(  # type: ignore[valid-type]
        None, description="Let the best rollout in this mode represent the clip."
    )
    gate_profile: Literal[tuple(GATE_PROFILES)] | None = Field(  # type: ignore[valid-type]
        None, description="Let the best rollout by this gate profile represent the clip."
    )
    tag: list[Tag] = Field(default_factory=list, max_length=20, description="Repeatable: the clip has all of them.")
    name: RobotName | None = Field(None, description="Part of the name, in any case.")
    parent: Id | None = Field(None, description="The id of a clip: its variants.")
    min_duration_sec: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = Field(None, description="s, as uploaded.")

    def to_query(self) -> ClipQuery:
        """The query for the catalog; raises `ParameterRefused` where the lower bound of a metric is above the upper one."""
        bounds = {m.name: (getattr(self, f"min_{m.name}"), getattr(self, f"max_{m.name}")) for m in METRICS}
        for name, (low, high) in bounds.items():
            if low is not None and high is not None and low > high:
                raise ParameterRefused(
                    f"min_{name} is above max_{name}", key=f"query.min_{name}", expected="the lower bound first"
                )
        return ClipQuery(
            **self.model_dump(include={"tier", "robot", "mode", "gate_profile", "min_duration_sec", "name", "parent"}),
            tags=tuple(self.tag),
            metrics={name: pair for name, pair in bounds.items() if pair != (None, None)},
        )


class _ClipListing(ClipFilter):
    """The curriculum query, but for the bounds of metrics."""

    sort: Literal[tuple(f"{sign}{key}" for key in SORT_COLUMNS for sign in ("", "-"))] = Field(  # type: ignore[valid-type]
        "-created_at", description="Ascending, or with `-` before it descending; clips without a value come last."
    )
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 50
    cursor: Cursor | None = Field(None, description="`next_cursor` of the page before.")

    def to_query(self) -> ClipQuery:
        place = {"sort": self.sort.removeprefix("-"), "descending": self.sort.startswith("-")}
        return replace(super().to_query(), **place, limit=self.limit, cursor=self.cursor)


class _HistogramOf(ClipFilter):
    """What a histogram is of, but for the bounds of metrics."""

    metric: Literal[HISTOGRAM_COLUMNS] = Field(  # type: ignore[valid-type]
        description="What is measured; the query's own bounds of it are left out."
    )
    bins: Annotated[int, Field(ge=FEWEST_BINS, le=MOST_BINS, description="At most so many.")] = 24


class HistogramView(View):
    """The distribution of a metric among the clips that the other filters leave."""

    metric: str
    unit: str
    edges: list[float] = Field(description="Of the bins, ascending round numbers; none where no clip has a value.")
    counts: list[int] = Field(description="Clips from one edge up to the next.")
    below: int = Field(description="Clips before the first edge.")
    above: int = Field(description="Clips from the last edge on.")
    missing: int = Field(description="Clips without a value.")
    total: int = Field(description="All of these clips.")
    low: float | None = Field(description="The least value.")
    high: float | None = Field(description="The greatest value.")


class FacetView(View):
    """A value of a filter, and how many clips the query would have with it."""

    value: str | int | None = Field(description="Null: the clips without a result.")
    clips: int


class FacetsView(View):
    """How many clips a query has, and would have with each value of a filter in the place of its own."""

    total: int
    tier: list[FacetView]
    robot: list[FacetView]
    mode: list[FacetView]
    gate_profile: list[FacetView]
    tag: list[FacetView] = Field(description="The most frequent, in addition to the tags of the query.")


_METRIC_BOUNDS: dict[str, Any] = {
    f"{side}_{metric.name}": (
        Annotated[float | None, Field(allow_inf_nan=False)],
        Field(None, description=f"{words} this `{metric.name}` [{metric.unit}]"),
    )
    for metric in METRICS
    for side, words in (("min", "at least"), ("max", "at most"))
}
ClipQueryParams = create_model("ClipQueryParams", __base__=_ClipListing, **_METRIC_BOUNDS)
ClipFilterParams = create_model("ClipFilterParams", __base__=ClipFilter, **_METRIC_BOUNDS)
HistogramParams = create_model("HistogramParams", __base__=_HistogramOf, **_METRIC_BOUNDS)
