"""The pages of datasets: what there is, one dataset and the difference of two versions, one version before a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Form, Query, Request
from markupsafe import Markup
from starlette.responses import RedirectResponse, Response

from amp_core.errors import AmprefError, Busy, FileGone
from amp_core.verify.html import describe_verdict, render_checklist, render_outcomes
from ampref_service.api.deps import ServicesDep, needs
from ampref_service.api.params import AliasName, DatasetName, ExactVersion, Position, VersionOrAlias
from ampref_service.catalog import Session, datasets, members, pulls, statistics
from ampref_service.catalog.records import Dataset, Version
from ampref_service.diff import compare_versions
from ampref_service.keys import Caller
from ampref_service.services import Services
from ampref_service.versions import find_version, restore_version
from ampref_service.web.clips import KEY_HEADER
from ampref_service.web.plots import draw_bars, draw_map, draw_seconds, draw_share
from ampref_service.web.site import change_params, is_fragment, lead_to, make_page_router, own_address, own_path, render_page

router = make_page_router()

Reader = Annotated[Caller, needs("datasets:read")]
Writer = Annotated[Caller, needs("datasets:write")]
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Reason = Annotated[str, Form(max_length=1000, pattern=_PRINTABLE)]

_MEMBERS = 50
_MOST_CHANGES = 500
_WAIT_SEC = 2.0
"""How long a page waits for statistics that are being computed, before it says so and asks again."""


@router.get("/datasets")
def show_datasets(request: Request, services: ServicesDep, caller: Reader) -> Response:
    """Every dataset that the caller may see."""
    with services.catalog.session() as session:
        rows = datasets.list_datasets(session, caller.bounds)
        best = {row.name: next((v for v in row.versions if v.version == row.latest), row.versions[0]) for row in rows}
        coverage = {name: datasets.get_coverage(session, version.id) or {} for name, version in best.items()}
    values = {"title": "Datasets", "section": "datasets", "datasets": rows, "best": best, "coverage": coverage}
    return render_page(request, "datasets.html", values | {"readiness": _read_readiness, "may_lock": _may_write(caller)})


@router.get("/datasets/{name}")
def show_dataset(
    request: Request,
    name: DatasetName,
    services: ServicesDep,
    caller: Reader,
    before: Annotated[VersionOrAlias | None, Query()] = None,
    after: Annotated[VersionOrAlias | None, Query()] = None,
) -> Response:
    """A dataset's versions and aliases and, of the two that the address names, the difference."""
    return _show_dataset(request, services, caller, name, before, after)


def _show_dataset(
    request: Request,
    services: Services,
    caller: Caller,
    name: str,
    before: str | None = None,
    after: str | None = None,
    error: AmprefError | None = None,
) -> Response:
    values: dict[str, Any] = {"title": name, "section": "datasets", "error": error, "diff": None}
    with services.catalog.session() as session:
        dataset = datasets.get_dataset(session, name)
        if before and after:
            old, new = find_version(session, name, before), find_version(session, name, after)
            values |= {"diff": compare_versions(session, old, new), "before": old, "after": new}
    values |= {
        "dataset": dataset,
        "names": _list_names(dataset),
        "readiness": _read_readiness,
        "most_changes": _MOST_CHANGES,
        "may_write": _may_write(caller),
    }
    return render_page(request, "dataset.html", values, status=200 if error is None else error.status)


@router.get("/datasets/{name}/versions/{version}")
def show_version(
    request: Request,
    name: DatasetName,
    version: VersionOrAlias,
    services: ServicesDep,
    caller: Reader,
    after: Annotated[Position | None, Query()] = None,
) -> Response:
    """A version, before a training run: whether it is ready, what it covers, what is in it, and the lines to paste."""
    return _show_version(request, services, caller, name, version, after)


def _show_version(
    request: Request,
    services: Services,
    caller: Caller,
    name: str,
    version: str,
    after: str | None = None,
    error: AmprefError | None = None,
) -> Response:
    with services.catalog.session() as session:
        row = find_version(session, name, version)
        dataset = datasets.get_dataset(session, name)
        coverage = datasets.get_coverage(session, row.id) or {}
        segments = members.list_members(session, row.id, after_position=-1 if after is None else int(after), limit=_MEMBERS + 1)
        values: dict[str, Any] = {
            "coverage": coverage,
            "has_report": datasets.get_verification(session, row.id) is not None,
            "pulls": pulls.list_pulls(session, row.id, limit=100),
            "facts": statistics.find_statistics(session, row.id),
        }
        # Counted once with the statistics: of a version with many clips that takes longer than the rest of the page.
        if values["facts"] is None:
            values["buckets"] = [(bucket.name, bucket.num_clips) for bucket in members.get_buckets(session, row.id)]
        else:
            values["buckets"] = [(share["name"], share["clips"]) for share in values["facts"]["balance"]["buckets"]]
    base_url = str(request.base_url).rstrip("/")
    params = list(request.query_params.multi_items())
    values |= {
        "title": f"{name}=={row.version}",
        "section": "datasets",
        "error": error,
        "version": row,
        "dataset": dataset,
        "names": _list_names(dataset).get(row.version, []),
        "readiness": _read_readiness(row),
        "members": segments[:_MEMBERS],
        "next_members": change_params(params, {"after": segments[_MEMBERS - 1].position}) if len(segments) > _MEMBERS else None,
        "is_first_page": after is None,
        "lines": _write_lines(base_url, row, has_key=caller != Caller()),
        "plots": _draw_coverage(coverage),
        "may_write": _may_write(caller),
        "address": own_path(request, f"/datasets/{name}/versions/{row.version}"),
    }
    return render_page(
        request, "version.html", values | _draw_statistics(values["facts"]), status=error.status if error else 200
    )


@router.get("/datasets/{name}/versions/{version}/statistics")
def show_statistics(
    request: Request, name: DatasetName, version: VersionOrAlias, services: ServicesDep, caller: Reader
) -> Response:
    """The statistics and the balance of a version, for its page or alone; computed where nobody asked before."""
    with services.catalog.session() as session:
        row = find_version(session, name, version)
    values: dict[str, Any] = {
        "title": f"Statistics of {name}=={row.version}",
        "section": "datasets",
        "version": row,
        "facts": None,
        "busy": None,
        "gone": None,
        "address": own_path(request, f"/datasets/{name}/versions/{row.version}"),
    }
    try:
        values["facts"] = request.app.state.statistics.get(row, _WAIT_SEC)
    except Busy as error:
        values["busy"] = error
    except FileGone as error:
        values["gone"] = error
    template = "statistics_parts.html" if is_fragment(request) else "statistics.html"
    return render_page(request, template, values | _draw_statistics(values["facts"]))


# What a page's forms ask for. A refusal is said on the page that the form is on.


@router.post("/datasets/{name}/versions/{version}/yank")
def yank_version(
    request: Request, name: DatasetName, version: ExactVersion, services: ServicesDep, caller: Writer, reason: Reason = ""
) -> Response:
    """Yank a version, and go back to its page."""

    def change(session: Session) -> None:
        datasets.yank_version(session, name, version, reason, actor=caller.name)

    return _change_version(request, services, caller, name, version, change)


@router.post("/datasets/{name}/versions/{version}/unyank")
def unyank_version(
    request: Request, name: DatasetName, version: ExactVersion, services: ServicesDep, caller: Writer
) -> Response:
    """Take a yank back, and go back to the version's page."""

    def change(session: Session) -> None:
        datasets.unyank_version(session, name, version, actor=caller.name)

    return _change_version(request, services, caller, name, version, change)


@router.post("/datasets/{name}/versions/{version}/archive")
def archive_version(
    request: Request,
    name: DatasetName,
    version: ExactVersion,
    services: ServicesDep,
    caller: Writer,
    manifest_sha256: Annotated[str, Form(max_length=80, pattern=_PRINTABLE)] = "",
    reason: Reason = "",
) -> Response:
    """Archive a version, and go back to its page."""

    def change(session: Session) -> None:
        datasets.archive_version(session, name, version, reason, expected_manifest=manifest_sha256, actor=caller.name)

    return _change_version(request, services, caller, name, version, change)


@router.post("/datasets/{name}/versions/{version}/unarchive")
def unarchive_version(
    request: Request, name: DatasetName, version: ExactVersion, services: ServicesDep, caller: Writer
) -> Response:
    """Take an archive back, and go back to the version's page."""
    try:
        restore_version(services, name, version, actor=caller.name)
    except AmprefError as error:
        return _show_version(request, services, caller, name, version, error=error)
    return _lead_to_version(request, name, version)


@router.post("/datasets/{name}/aliases")
def set_alias(
    request: Request,
    name: DatasetName,
    services: ServicesDep,
    caller: Writer,
    version: Annotated[str, Form(max_length=64, pattern=_PRINTABLE)] = "",
    alias: Annotated[str, Form(max_length=64, pattern=_PRINTABLE)] = "",
    back: Annotated[str, Form(max_length=400)] = "",
) -> Response:
    """Let an alias lead to a version, and go back."""
    try:
        with services.catalog.begin() as session:
            datasets.set_alias(session, name, alias.strip(), version, actor=caller.name)
    except AmprefError as error:
        return _show_dataset(request, services, caller, name, error=error)
    return RedirectResponse(own_address(request, back, f"/datasets/{name}"), 303)


@router.post("/datasets/{name}/aliases/{alias}/remove")
def remove_alias(request: Request, name: DatasetName, alias: AliasName, services: ServicesDep, caller: Writer) -> Response:
    """Forget an alias, and go back to the dataset."""
    try:
        with services.catalog.begin() as session:
            datasets.drop_alias(session, name, alias, actor=caller.name)
    except AmprefError as error:
        return _show_dataset(request, services, caller, name, error=error)
    return lead_to(request, f"/datasets/{name}")


def _change_version(request: Request, services: Services, caller: Caller, name: str, version: str, change: Any) -> Response:
    try:
        with services.catalog.begin() as session:
            change(session)
    except AmprefError as error:
        return _show_version(request, services, caller, name, version, error=error)
    return _lead_to_version(request, name, version)


def _lead_to_version(request: Request, name: str, version: str) -> Response:
    return lead_to(request, f"/datasets/{name}/versions/{version}")


def _may_write(caller: Caller) -> bool:
    return "datasets:write" in caller.scopes


def _list_names(dataset: Dataset) -> dict[str, list[str]]:
    """The aliases of each version, `latest` among them."""
    names: dict[str, list[str]] = {} if dataset.latest is None else {dataset.latest: ["latest"]}
    for alias, version in sorted(dataset.aliases.items()):
        names.setdefault(version, []).append(alias)
    return names


def _read_readiness(version: Version) -> dict[str, Any]:
    """The verdict of a version in words, and the parts of its checklist; without the parts where there were no tests."""
    readiness = version.readiness or {}
    if "groups" not in readiness:
        return {"ready": None, "verdict": "locked before there were readiness tests", "checklist": None, "tests": None}
    return {
        "ready": readiness["ready"],
        "verdict": describe_verdict(readiness),
        "checklist": Markup(render_checklist(readiness["groups"])),
        "tests": Markup(render_outcomes(readiness["tests"])),
        "waivers": readiness.get("waivers") or [],
    }


def _write_lines(base_url: str, version: Version, *, has_key: bool) -> dict[str, str]:
    """What to paste in a shell, in Python and for curl."""
    name, pin = f"{version.dataset}=={version.version}", version.manifest_digest or ""
    option = "" if (version.readiness or {}).get("ready") else "    allow_not_ready=True,\n"
    python = (
        "from amp_core.client import load_dataset\n\n"
        f'data = load_dataset(\n    "{name}",\n    url={json.dumps(base_url)},\n    manifest_sha256="{pin}",\n{option})'
    )
    address = f"{base_url}/v1/datasets/{version.dataset}/versions/{version.version}/files/"
    return {
        "pull": f"ampref pull {name} --url {base_url} --manifest-sha256 {pin}",
        "python": python,
        "curl": "\n".join(f"curl -fsSO {KEY_HEADER if has_key else ''}{address}{file.name}" for file in version.files),
    }


def _draw_coverage(coverage: Mapping[str, Any]) -> dict[str, Markup]:
    labels = {"forward_speed": "forward speed", "lateral_speed": "lateral speed", "turning_rate": "turning rate"}
    return {name: draw_seconds(coverage[name], label) for name, label in labels.items() if name in coverage}


def _draw_statistics(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the templates of statistics need besides the figures."""
    if facts is None:
        return {"histograms": {}, "map": None, "phases": [], "blocks": {}, "outliers": [], "draw_share": draw_share}
    histograms = {
        feature["name"]: draw_bars(
            feature["histogram"]["edges"],
            feature["histogram"]["counts"],
            f"distribution of {feature['name']}",
            unit=feature["unit"] if " " not in feature["unit"] else "",
        )
        for feature in facts["features"]
        if feature["histogram"] is not None
    }
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for feature in facts["features"]:
        blocks.setdefault(feature["block"], []).append(feature)
    return {
        "histograms": histograms,
        "map": draw_map(facts["turning"], facts["control_dt"]),
        "phases": [(_name_phase(phase["feet"], facts["phases"]), phase["frames"]) for phase in facts["phases"]],
        "blocks": blocks,
        "outliers": [feature["name"] for feature in facts["features"] if feature["outliers"]],
        "draw_share": draw_share,
    }


def _name_phase(feet: Sequence[str], phases: Sequence[Mapping[str, Any]]) -> str:
    count = max((len(phase["feet"]) for phase in phases), default=0)
    if not feet:
        return "flight"
    if count == 2 and len(feet) == 2:
        return "double support"
    return ("only " if len(feet) == 1 else "") + " and ".join(feet)
