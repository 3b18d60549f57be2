"""Versions of a dataset: lock one, yank it, serve its members, files and verification.

A version is shown complete or not at all: while its lock job works, and after it failed, its address is a 404 that names the
job. What an address with an exact version serves never changes and may be cached for ever; one with an alias is revalidated.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response
from fastapi.responses import HTMLResponse

from amp_core.errors import NotFound
from amp_core.readiness import check_waivers
from amp_core.strict_json import read_json
from amp_core.verify.html import page
from ampref_service.api.dataset_schemas import (
    ArchiveBody,
    ArchiveView,
    LockBody,
    Locking,
    MemberPage,
    PullList,
    VersionStatisticsView,
    VersionView,
    YankBody,
)
from ampref_service.api.deps import AnnouncerDep, CallerDep, ServicesDep, job_terms, needs
from ampref_service.api.docs_page import SAFE_PAGE
from ampref_service.api.files import (
    BINARY,
    IMMUTABLE,
    REVALIDATE,
    StoredFile,
    add_file_route,
    begins_download,
    file_responses,
    serve_file,
)
from ampref_service.api.links import A_DAY, LinkBody, LinkMakerDep, LinkView
from ampref_service.api.pages import link_next, page_responses
from ampref_service.api.params import DatasetName, ExactVersion, FileName, Position, VersionOrAlias
from ampref_service.api.problems import BODY_STATUSES, responses
from ampref_service.api.strict import make_router
from ampref_service.catalog import Session, datasets, members, pulls, purging
from ampref_service.catalog.records import Page, Puller, Version, VersionFile, VersionMember
from ampref_service.keys import Caller
from ampref_service.versions import find_version, name_robot, request_lock, restore_version

router = make_router("datasets")

READ = [needs("datasets:read")]
Writer = Annotated[Caller, needs("datasets:write")]

_YANK = {"Warning": {"description": "`299`, with the reason, while the version is yanked.", "schema": {"type": "string"}}}


@router.post("/{name}/versions", status_code=202, response_model=Locking, responses=responses(404, 409, *BODY_STATUSES))
def lock_version(
    name: DatasetName, body: LockBody, services: ServicesDep, announcer: AnnouncerDep, caller: Writer
) -> dict[str, Any]:
    """Gather the selected rollouts, check them, and lock them as a version; of two locks of one version one wins."""
    select = name_robot(services, name, body.select.to_select(), caller.bounds.includes_robot)
    caller.check_robot(select.robot)
    if body.waivers:
        caller.check_scope("datasets:waive")
    waivers = check_waivers(waiver.model_dump() for waiver in body.waivers)
    terms = job_terms(services, caller, body.priority)
    version, job, absences = request_lock(services, name, body.version, select, waivers, terms, actor=caller.name)
    announcer.announce(job)
    return vars(version) | {"state": "locking", "job": job, **absences}


@router.get("/{name}/versions/{version}", responses={200: {"headers": _YANK}, **responses(404)}, dependencies=READ)
def get_version(name: DatasetName, version: VersionOrAlias, services: ServicesDep, response: Response) -> VersionView:
    """A locked version by its exact name, `latest` or an alias: readiness, files and digests. 404 while it is being locked."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
        response.headers.update(_warn_of_yank(row))
        view = view_version(session, row, version)
    if services.settings.redirect_downloads:
        view.download_origin = services.blobs.origin
    return view


def view_version(session: Session, row: Version, asked_for: str) -> VersionView:
    """The view of a version under the name that it was asked for by."""
    dataset = datasets.get_dataset(session, row.dataset)
    address = f"/v1/datasets/{row.dataset}/versions/{row.version}"
    files = [vars(file) | {"url": f"{address}/files/{file.name}"} for file in row.files]
    aliases = [alias for alias, version in dataset.aliases.items() if version == row.version]
    is_verified = datasets.get_verification(session, row.id) is not None
    fields = {
        "yanked": row.yanked,
        "archived": row.archived,
        "asked_for": asked_for,
        "manifest_sha256": row.manifest_digest,
        "coverage": datasets.get_coverage(session, row.id),
        "buckets": members.get_buckets(session, row.id),
        "aliases": sorted([*aliases, *(["latest"] if dataset.latest == row.version else [])]),
        "files": files,
        "manifest_url": next((file["url"] for file in files if file["digest"] == row.manifest_digest), None),
        "verification_url": f"{address}/verification" if is_verified else None,
    }
    return VersionView.model_validate(vars(row) | fields)


def _warn_of_yank(row: Version) -> dict[str, str]:
    if not row.yanked:
        return {}
    # Quoted, on one line, in ASCII: what a header can carry.
    reason = (row.yank_reason or "").encode("ascii", "replace").decode().replace("\\", "/").replace('"', "'")
    text = " ".join(f"{row.dataset}=={row.version} is yanked: {reason}".split())
    return {"warning": f'299 ampref "{text}"'}


def _describe_file(file: VersionFile, row: Version, asked_for: str) -> StoredFile:
    cache = IMMUTABLE if row.version == asked_for else REVALIDATE
    return StoredFile(file.digest, file.size, file.name, file.media_type, cache)


@router.post("/{name}/versions/{version}/yank", responses=responses(404, *BODY_STATUSES))
def yank_version(
    name: DatasetName, version: ExactVersion, body: YankBody, services: ServicesDep, caller: Writer
) -> VersionView:
    """Ask that nobody starts to use a version: `latest` skips it, its exact name still works and warns."""
    with services.catalog.begin() as session:
        row = datasets.yank_version(session, name, version, body.reason, actor=caller.name)
        return view_version(session, row, version)


@router.post("/{name}/versions/{version}/unyank", responses=responses(404))
def unyank_version(name: DatasetName, version: ExactVersion, services: ServicesDep, caller: Writer) -> VersionView:
    """Take a yank back."""
    with services.catalog.begin() as session:
        row = datasets.unyank_version(session, name, version, actor=caller.name)
        return view_version(session, row, version)


@router.post("/{name}/versions/{version}/archive", responses=responses(404, 409, *BODY_STATUSES))
def archive_version(
    name: DatasetName, version: ExactVersion, body: ArchiveBody, services: ServicesDep, caller: Writer
) -> ArchiveView:
    """Give up a version's features: their address is a 410, `latest` skips it, its clips may be purged. The rest stays."""
    with services.catalog.begin() as session:
        row = datasets.archive_version(
            session,
            name,
            version,
            body.reason,
            expected_manifest=body.expected_manifest_sha256,
            dry_run=body.dry_run,
            actor=caller.name,
        )
        free, purgeable = purging.count_released(session, row.id)
        return ArchiveView(**dict(view_version(session, row, version)), free_clips=free, purgeable_clips=purgeable)


@router.post("/{name}/versions/{version}/unarchive", responses=responses(404, 409))
def unarchive_version(name: DatasetName, version: ExactVersion, services: ServicesDep, caller: Writer) -> VersionView:
    """Take an archive back, where the store has the features again, byte for byte."""
    row = restore_version(services, name, version, actor=caller.name)
    with services.catalog.session() as session:
        return view_version(session, row, version)


@router.get("/{name}/versions/{version}/members", response_model=MemberPage, responses=page_responses(404), dependencies=READ)
def list_members(
    name: DatasetName,
    version: VersionOrAlias,
    services: ServicesDep,
    request: Request,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[Position | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Page[VersionMember]:
    """Which frames of which rollouts a version holds, segment by segment."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
        last = -1 if cursor is None else int(cursor)
        items = members.list_members(session, row.id, after_position=last, limit=limit)
    next_cursor = str(items[-1].position) if len(items) == limit else None
    return link_next(request, response, Page(tuple(items), next_cursor))


def get_file(
    name: DatasetName, version: VersionOrAlias, file: FileName, request: Request, services: ServicesDep, caller: CallerDep
) -> Response:
    """One of the version's files, with its SHA-256 as ETag. Resumes by Range; an exact version's may be cached for ever."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
        artifact = datasets.get_file(session, name, row.version, file)
    stored_file, may_redirect = _describe_file(artifact, row, version), services.settings.redirect_downloads
    response = serve_file(request, services.blobs, stored_file, _warn_of_yank(row), may_redirect=may_redirect)
    if artifact.name == _first_features(row) and begins_download(request, response):
        request.app.state.pulls.count(Puller(row.id, caller.name, _client_kind(request.headers.get("user-agent", ""))))
    return response


def _first_features(row: Version) -> str | None:
    """The file that every pull fetches from its first byte on: the features, or the first shard of them."""
    return min((file.name for file in row.files if not file.is_kept), default=None)


def _client_kind(user_agent: str) -> str:
    match = re.match(r"ampref(/[0-9A-Za-z.+-]{1,30})?(?![^\s])", user_agent)
    return match[0] if match else "other"


@router.get("/{name}/versions/{version}/statistics", responses=responses(404, 410), dependencies=READ)
def get_statistics(
    name: DatasetName, version: VersionOrAlias, request: Request, services: ServicesDep
) -> VersionStatisticsView:
    """How each feature is spread, its outliers, and what the version is made of. 503 while that is being computed."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
    facts = request.app.state.statistics.get(row)
    return VersionStatisticsView.model_validate({"dataset": row.dataset, "version": row.version, **facts})


@router.get("/{name}/versions/{version}/pulls", response_model=PullList, responses=responses(404), dependencies=READ)
def list_pulls(name: DatasetName, version: VersionOrAlias, services: ServicesDep) -> dict[str, Any]:
    """Who pulled a version, with which client, when and how often; up to 500 rows, the latest first."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
        return {"items": pulls.list_pulls(session, row.id)}


add_file_route(
    router,
    "/{name}/versions/{version}/files/{file}",
    get_file,
    "version_file",
    media_types=("application/json", BINARY),
    dependencies=READ,
)


@router.post("/{name}/versions/{version}/files/{file}/link", responses=responses(404, *BODY_STATUSES), dependencies=READ)
def link_version_file(
    name: DatasetName,
    version: VersionOrAlias,
    file: FileName,
    services: ServicesDep,
    links: LinkMakerDep,
    body: LinkBody = A_DAY,
) -> LinkView:
    """A link to one of the version's files, which needs no key and expires; of an alias, to what it means now."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
        artifact = datasets.get_file(session, name, row.version, file)
    return links.make(f"/v1/datasets/{row.dataset}/versions/{row.version}/files/{artifact.name}", body)


_FILE = file_responses("application/json")
_REPORT = {
    "description": "The report",
    "content": {"application/json": {"schema": {"type": "object"}}, "text/html": {"schema": {"type": "string"}}},
    "headers": _FILE[200]["headers"] | _YANK,
}


@router.get(
    "/{name}/versions/{version}/verification", response_class=Response, responses=_FILE | {200: _REPORT}, dependencies=READ
)
def get_verification(
    name: DatasetName,
    version: VersionOrAlias,
    services: ServicesDep,
    request: Request,
    format: Annotated[
        Literal["json", "html"] | None, Query(description="Default: as `Accept` asks, JSON where that allows it.")
    ] = None,
) -> Response:
    """The report of the readiness tests before the lock, as JSON or as one page for people."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
        report = datasets.get_verification(session, row.id)
    if report is None:
        raise NotFound(
            f"{row.dataset}=={row.version} was locked before there were readiness tests",
            remedy=f"Test it as it is: ampref verify {row.dataset}=={row.version}",
        )
    headers = _warn_of_yank(row) | {"vary": "accept"}
    accept = request.headers.get("accept", "")
    is_browser = "text/html" in accept and "application/json" not in accept
    if format == "html" or (format is None and is_browser):
        document = read_json(services.blobs.read_bytes(report.digest))
        return HTMLResponse(page(document), headers=headers | SAFE_PAGE | {"cache-control": REVALIDATE})
    return serve_file(request, services.blobs, _describe_file(report, row, version), headers)
