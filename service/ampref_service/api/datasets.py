"""Datasets: lock a version, find versions and aliases, serve their files.

A version is shown whole or not at all: while its lock job works, and after it failed, its address is a 404 that names the job.
What an address with an exact version serves never changes and may be cached for ever; one with an alias is revalidated.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from pydantic import BaseModel, Field, StringConstraints

from amp_core.errors import InputRefused, NotFound
from amp_core.readiness import MAX_REASON, TEST_IDS, check_waivers
from amp_core.recipe import SCALE_RANGE, PhysicsScale
from ampref_service import diff, uploads
from ampref_service.api.blob import IMMUTABLE, REVALIDATE, StoredFile, file_responses, serve
from ampref_service.api.deps import Caller, Service, needs
from ampref_service.api.jobs import JobView
from ampref_service.api.params import (
    TEXT_PATTERN,
    AliasName,
    Body,
    DatasetName,
    Digest,
    ExactVersion,
    FileName,
    LockableTier,
    Mode,
    Name,
    Note,
    RobotName,
    Tag,
    Time,
    VersionOrAlias,
    View,
)
from ampref_service.api.strict import StrictRoute
from ampref_service.catalog import Session, job_rows, sources
from ampref_service.catalog import datasets as queries
from ampref_service.catalog.records import Dataset, Select, Version
from ampref_service.errors import responses

router = APIRouter(prefix="/datasets", route_class=StrictRoute, tags=["datasets"])


class FileView(View):
    """One of a version's three files."""

    name: str
    sha256: str = Field(description="`sha256:…` of its bytes; also its ETag.")
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


class BucketView(View):
    """What a version holds of one bucket of physics; the manifest has its rows and statistics."""

    name: str = Field(description="`canonical` for the robot's own physics, or its factors: `friction=0.7,mass=1.1`.")
    physics: dict[str, float] = Field(description="Factors on `friction`, `mass` and `damping`.")
    num_clips: int
    num_frames: int


class VersionView(VersionSummary):
    """A locked version: what was selected, what came of it, its files and who may rely on it."""

    asked_for: str = Field(description="The version, `latest` or alias in the address; `version` is what it means now.")
    select: dict[str, Any]
    feature_code_hash: str | None
    manifest_sha256: str | None = Field(description="Pin this in a training config.")
    readiness: dict[str, Any] | None = Field(
        description="The training-readiness checklist, as of the lock: `ready`, `groups` of criteria with status and evidence, "
        "each of the `tests` with status and reason, `waivers`, and the `checks` of every member. Only `checks` where it was "
        "locked before there were tests."
    )
    verification_url: str | None = Field(description="All that the tests found, as JSON or as a page; null as above.")
    coverage: dict[str, Any] | None = Field(
        description="The manifest's `coverage`: seconds by tier, source and speed, stance, feature space. "
        "Null where it was locked before there were any."
    )
    buckets: list[BucketView] = Field(description="By the physics that the clips were simulated in, the robot's own first.")
    aliases: list[str] = Field(description="That point to this version now; `latest` among them.")
    files: list[FileView]
    manifest_url: str | None


class DatasetView(View):
    """A dataset: its locked versions, newest first, and what its aliases mean now."""

    name: str
    created_at: Time
    latest: str | None = Field(description="The highest version that is locked, not yanked and no pre-release.")
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
    """Which rollouts a version takes: for each clip its best one in the robot's own physics, or its best in `mode`, or the one
    of `recipe`; with `buckets`, its best one in each of them.

    A rollout in scaled physics is taken only when its `recipe` or its bucket is named.
    """

    robot: RobotName = "wildrobot"
    tier: Annotated[
        LockableTier | list[LockableTier], Field(description="0, 1 or both; Tier 0 alone is what training wants.")
    ] = 0
    mode: Mode | None = None
    recipe: Annotated[Digest | None, Field(description="A recipe's digest.")] = None
    tags: list[Tag] = Field(default_factory=list, max_length=50, description="The clip bears all of them.")
    clips: list[Name] = Field(default_factory=list, max_length=100_000, description="Ids or names; empty: all.")
    segments: Annotated[bool, Field(description="Take passing windows of clips that fail as a whole, too.")] = False
    buckets: Annotated[
        Literal["all"] | Annotated[list[PhysicsBody], Field(min_length=1, max_length=100)] | None,
        Field(
            description="The physics to take each clip in, `{}` being the robot's own; `all`: in each that it was scored in."
        ),
    ] = None


class WaiverBody(Body):
    """A failure that is borne, and why."""

    test: Literal[TEST_IDS] = Field(description="The test's id.")  # type: ignore[valid-type]
    reason: Annotated[str, StringConstraints(pattern=TEXT_PATTERN, min_length=1, max_length=MAX_REASON)] = Field(
        description="For those who train on the version."
    )


class LockBody(Body):
    """A version to be locked."""

    version: ExactVersion
    select: SelectBody = Field(default_factory=lambda: SelectBody())
    waivers: list[WaiverBody] = Field(
        default_factory=list,
        max_length=len(TEST_IDS),
        description="Readiness tests whose failure does not stop the lock; the manifest keeps them, each test once.",
    )


class Locking(BaseModel):
    """A version that is being locked: follow the job; the version appears when it has succeeded."""

    dataset: str
    version: str
    state: Literal["locking"]
    select: dict[str, Any]
    job: JobView
    pending_clips: Annotated[
        int, Field(description="Clips that fit by robot, tags and names and are still being scored: too late, maybe.")
    ]


class AliasBody(Body):
    """What an alias is to mean."""

    version: ExactVersion


class YankBody(Body):
    """Why nobody should start to use a version."""

    reason: Note


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


READ, WRITE = [needs("datasets:read")], needs("datasets:write")
Writer = Annotated[Caller, WRITE]

YANKED = {"Warning": {"description": "`299`, with the reason, while the version is yanked.", "schema": {"type": "string"}}}


@router.get("", responses=responses(), dependencies=READ)
def list_datasets(opened: Service) -> DatasetList:
    """Every dataset that has a locked version."""
    with opened.catalog.session() as session:
        found = queries.list_datasets(session)
    return DatasetList(items=[_dataset_summary(dataset) for dataset in found])


def _dataset_summary(dataset: Dataset) -> DatasetSummary:
    facts = {name: getattr(dataset, name) for name in ("name", "created_at", "latest", "aliases")}
    return DatasetSummary.model_validate(facts | {"num_versions": len(dataset.versions)})


@router.get("/{name}", responses=responses(404), dependencies=READ)
def get_dataset(name: DatasetName, opened: Service) -> DatasetView:
    """A dataset: its locked versions, the highest first, its aliases, and what `latest` means now."""
    with opened.catalog.session() as session:
        return DatasetView.model_validate(queries.get_dataset(session, name))


@router.post("/{name}/versions", status_code=202, responses=responses(400, 404, 408, 409, 413, 415, 422))
def lock_version(
    name: DatasetName, body: LockBody, opened: Service, response: Response, later: BackgroundTasks, who: Writer
) -> Locking:
    """Gather the selected rollouts, check them, and lock them as a version; of two locks of one version one wins."""
    opened.robot(body.select.robot)
    wanted, waivers = _select(body.select), check_waivers(waiver.model_dump() for waiver in body.waivers)
    with opened.catalog.session() as session:
        _refuse_empty(session, wanted)
    with opened.catalog.begin() as session:
        version, job = queries.begin_version(
            session, name, body.version, wanted, waivers=waivers, max_attempts=opened.settings.max_attempts, actor=who.name
        )
        pending = queries.pending_clips(session, wanted)
    later.add_task(uploads.ring, opened.notify, job.id)
    response.headers["location"] = f"/v1/jobs/{job.id}"
    return Locking(
        dataset=name,
        version=version.version,
        state="locking",
        select=dict(version.select),
        job=JobView.of(job),
        pending_clips=pending,
    )


def _select(body: SelectBody) -> Select:
    tiers = tuple(body.tier) if isinstance(body.tier, list) else (body.tier,)
    return Select(
        robot=body.robot,
        tiers=tuple(dict.fromkeys(tiers)),
        mode=body.mode,
        recipe=body.recipe,
        tags=tuple(body.tags),
        clips=tuple(body.clips),
        segments=body.segments,
        buckets=_scales(body.buckets) if isinstance(body.buckets, list) else body.buckets,
    )


def _scales(buckets: list[PhysicsBody]) -> tuple[PhysicsScale, ...]:
    scales = {PhysicsScale(one.friction, one.mass, one.damping) for one in buckets}
    return tuple(sorted(scales, key=lambda scale: scale.order))


def _refuse_empty(session: Session, wanted: Select) -> None:
    missing = queries.missing_clips(session, wanted)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputRefused(
            f"there is no clip {', '.join(repr(clip) for clip in missing[:5])}{more} for the robot {wanted.robot!r}",
            key="select.clips",
            expected="ids or names of clips",
            remedy="GET /v1/clips lists what there is",
        )
    absent, there = queries.missing_buckets(session, wanted)
    if absent and there:
        raise InputRefused(
            f"nothing of the selection is in the bucket {', '.join(repr(scale.name) for scale in absent)}",
            key="select.buckets",
            expected=f"of {', '.join(scale.name for scale in there)}",
            remedy="Score the clips in it (ampref submit --physics, or POST /v1/clips with a recipe), or leave it out",
        )
    if next(iter(queries.select_members(session, wanted, chunk=1)), None) is None:
        raise InputRefused(
            "the selection is empty",
            key="select",
            expected="at least one rollout of the tiers asked for",
            remedy="Widen it (tier, tags, segments), or wait for the clips' jobs; GET /v1/clips?tier=0 lists what would go in",
        )


@router.get("/{name}/versions/{version}", responses={200: {"headers": YANKED}, **responses(404)}, dependencies=READ)
def get_version(name: DatasetName, version: VersionOrAlias, opened: Service, response: Response) -> VersionView:
    """A locked version by its exact name, `latest` or an alias: readiness, files and digests. 404 while it is being locked."""
    with opened.catalog.session() as session:
        found = find_version(session, name, version)
        view = _version_view(session, found, version)
    _warn(response, found)
    return view


def find_version(session: Session, name: str, version: str) -> Version:
    try:
        return queries.get_version(session, name, version)
    except NotFound as error:
        raise _explained(session, name, version) or error from None


def _explained(session: Session, name: str, version: str) -> NotFound | None:
    """Why a version that somebody wanted locked is not there: its newest lock job tells."""
    for job in job_rows.list_jobs(session, kind="lock", limit=500).items:
        if job.payload.get("dataset") == name and job.payload.get("version") == version:
            if job.finished:
                reason = f" ({job.error['detail']})" if job.error and "detail" in job.error else ""
                return NotFound(
                    f"{name}=={version} is not there: its lock job {job.id} has ended as {job.state}{reason}",
                    remedy="Mend what it names, and lock the version again",
                )
            return NotFound(
                f"{name}=={version} is not there yet: its lock job {job.id} is {job.state}",
                remedy=f"Follow GET /v1/jobs/{job.id}; the version appears when it has succeeded",
            )
    return None


def _version_view(session: Session, found: Version, asked_for: str) -> VersionView:
    dataset = queries.get_dataset(session, found.dataset)
    address = f"/v1/datasets/{found.dataset}/versions/{found.version}"
    base, tested = f"{address}/files", sources.get_verification(session, found.id) is not None
    files = [
        FileView(name=file.name, sha256=file.digest, size=file.size, media_type=file.media_type, url=f"{base}/{file.name}")
        for file in found.files
    ]
    manifest = next((file.url for file in files if file.sha256 == found.manifest_digest), None)
    aliases = [alias for alias, version in dataset.aliases.items() if version == found.version]
    if dataset.latest == found.version:
        aliases.append("latest")
    facts = {name: getattr(found, name) for name in VersionView.model_fields if hasattr(found, name)}
    return VersionView.model_validate(
        facts
        | {
            "asked_for": asked_for,
            "coverage": queries.get_coverage(session, found.id),
            "buckets": queries.get_buckets(session, found.id),
            "manifest_sha256": found.manifest_digest,
            "aliases": sorted(aliases),
            "files": files,
            "manifest_url": manifest,
            "verification_url": f"{address}/verification" if tested else None,
        }
    )


def yank_warning(found: Version) -> dict[str, str]:
    if not found.yanked:
        return {}
    # Quoted, on one line, in ASCII: what a header can carry.
    reason = (found.yank_reason or "").encode("ascii", "replace").decode().replace("\\", "/").replace('"', "'")
    text = " ".join(f"{found.dataset}=={found.version} is yanked: {reason}".split())
    return {"warning": f'299 ampref "{text}"'}


def _warn(response: Response, found: Version) -> None:
    response.headers.update(yank_warning(found))


@router.get("/{name}/diff", responses=responses(404), dependencies=READ)
def diff_versions(
    name: DatasetName, before: Annotated[VersionOrAlias, Query()], after: Annotated[VersionOrAlias, Query()], opened: Service
) -> DiffView:
    """Which clips came, went or changed from one version to another."""
    with opened.catalog.session() as session:
        old, new = find_version(session, name, before), find_version(session, name, after)
        found = diff.between(session, old, new)
    return DiffView(
        dataset=name,
        before=old.version,
        after=new.version,
        same_features=old.dataset_hash is not None and old.dataset_hash == new.dataset_hash,
        added=[TakenView.model_validate(taken) for taken in found.added],
        removed=[TakenView.model_validate(taken) for taken in found.removed],
        changed=[ChangedView.model_validate(change) for change in found.changed],
        unchanged=found.unchanged,
    )


@router.put("/{name}/aliases/{alias}", responses=responses(400, 404, 408, 409, 413, 415, 422))
def set_alias(name: DatasetName, alias: AliasName, body: AliasBody, opened: Service, who: Writer) -> VersionView:
    """Let an alias lead to a locked version; what it led to before stays as it is."""
    with opened.catalog.begin() as session:
        found = queries.set_alias(session, name, alias, body.version, actor=who.name)
        return _version_view(session, found, alias)


@router.delete("/{name}/aliases/{alias}", status_code=204, responses=responses(404, 409))
def delete_alias(name: DatasetName, alias: AliasName, opened: Service, who: Writer) -> None:
    """Forget an alias; the version that it led to stays."""
    with opened.catalog.begin() as session:
        queries.drop_alias(session, name, alias, actor=who.name)


@router.post("/{name}/versions/{version}/yank", responses=responses(400, 404, 408, 413, 415, 422))
def yank_version(name: DatasetName, version: ExactVersion, body: YankBody, opened: Service, who: Writer) -> VersionView:
    """Ask that nobody starts to use a version: `latest` passes it by, its exact name still works and warns."""
    with opened.catalog.begin() as session:
        found = queries.yank_version(session, name, version, body.reason, actor=who.name)
        return _version_view(session, found, version)


@router.post("/{name}/versions/{version}/unyank", responses=responses(404))
def unyank_version(name: DatasetName, version: ExactVersion, opened: Service, who: Writer) -> VersionView:
    """Take a yank back."""
    with opened.catalog.begin() as session:
        found = queries.unyank_version(session, name, version, actor=who.name)
        return _version_view(session, found, version)


def _file(name: DatasetName, version: VersionOrAlias, file: FileName, request: Request, opened: Service) -> Response:
    """One of the version's files, with its SHA-256 as ETag. Resumes by Range; an exact version's may be cached for ever."""
    with opened.catalog.session() as session:
        found = find_version(session, name, version)
        stored = queries.get_file(session, name, found.version, file)
    exact = found.version == version
    answer = StoredFile(stored.digest, stored.size, stored.name, stored.media_type, IMMUTABLE if exact else REVALIDATE)
    return serve(request, opened.blobs, answer, yank_warning(found))


for method in ("GET", "HEAD"):
    router.add_api_route(
        "/{name}/versions/{version}/files/{file}",
        _file,
        methods=[method],
        name="get_version_file" if method == "GET" else "head_version_file",
        response_class=Response,
        responses=file_responses("application/octet-stream", 404),
        dependencies=READ,
    )
