"""The Clips page: the curriculum query with its filters, as a page that can be linked to and pasted from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Request
from pydantic import ValidationError
from starlette.responses import Response

from amp_core.errors import InputRefused
from amp_core.metrics import METRICS
from amp_core.recipe import GENERATED_MODES
from amp_core.tiers import GATE_PROFILES, Tier
from ampref_service.api import clips as clips_api
from ampref_service.api.clip_schemas import ClipQueryParams
from ampref_service.api.deps import CallerDep, ServicesDep, needs
from ampref_service.catalog import job_rows
from ampref_service.catalog.curriculum import ClipQuery, list_clips
from ampref_service.catalog.records import ListedClip, Page
from ampref_service.catalog.tables import LIVE_STATES
from ampref_service.errors import ParameterRefused
from ampref_service.keys import Caller
from ampref_service.uploads import split_tags
from ampref_service.web.site import change_params, is_fragment, lead_to, make_page_router, render_page

router = make_page_router(dependencies=[needs("clips:read")])

COLUMNS = (
    ("duration_sec", "Sec."),
    ("mean_sum_fn_over_mg", "Load"),
    ("p90_stab_force_over_mg", "Harness"),
    ("unloaded_frame_rate", "Unloaded"),
    ("slip_rate", "Slip"),
    ("joint_rmse_rad", "RMSE"),
    ("root_drift_m", "Drift"),
)
"""The sort columns that the table shows; that of another order comes as well."""

KEY_METRICS = tuple(name for name, _ in COLUMNS if name != "duration_sec")
"""The metrics whose histograms are open on the page."""

KEY_HEADER = '-H "Authorization: Bearer $AMPREF_TOKEN" '
"""What a command for curl needs where the service asks for a key."""

DEFAULT_URL = "http://127.0.0.1:8000"
BINS = 24
"""Of a histogram, at most."""

_LIMIT = 25


@router.get("/clips")
def show_clips(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """The clips that the address's filters leave."""
    given_params = request.query_params.multi_items()
    params = [(name, value) for name, value in given_params if value.strip()]
    if len(params) < len(given_params) and not is_fragment(request):
        # A form sends its empty fields as well; an address that people share has what was filled in.
        return lead_to(request, f"/clips{change_params(params, {})}".rstrip("?"))
    error, query = None, ClipQuery(limit=_LIMIT)
    try:
        query = _bound_query(request.url.query, caller)
    except InputRefused as refusal:
        error = refusal
    with services.catalog.session() as session:
        page: Page[ListedClip] = Page((), None)
        if error is None:
            try:
                page = list_clips(session, query)
            except InputRefused as refusal:
                error = refusal
        waiting = [clip.id for clip in page.items if clip.rollout is None]
        counts = job_rows.counts(session, caller.bounds, LIVE_STATES)
        jobs = job_rows.live_for_clips(session, waiting)
    columns = list(COLUMNS)
    if query.sort not in ("created_at", *(name for name, _ in COLUMNS)):
        columns.append((query.sort, query.sort))
    values = {
        "title": "Clips",
        "section": "clips",
        "error": error,
        "query": query,
        "params": params,
        "page": page,
        "columns": columns,
        "counts": counts,
        "jobs": jobs,
        "metrics": sorted(METRICS, key=lambda metric: metric.name not in KEY_METRICS),
        "key_metrics": KEY_METRICS,
        "filters": urlencode([(name, value) for name, value in params if name not in ("sort", "cursor", "limit")]),
        "modes": GENERATED_MODES,
        "profiles": tuple(GATE_PROFILES),
        "tiers": tuple(Tier),
        "facets": None,
        "robots": [name for name in sorted(services.robots) if caller.bounds.includes_robot(name)],
        "may_lock": {"datasets:write"} <= caller.scopes,
        "lines": None if error else _write_lines(str(request.base_url).rstrip("/"), params, has_key=caller != Caller()),
        "link": lambda **changes: change_params(params, changes),
    }
    template = "clips_results.html" if is_fragment(request) else "clips.html"
    return render_page(request, template, values, status=200 if error is None else error.status)


@router.get("/clips/histogram")
def show_histogram(request: Request, services: ServicesDep, caller: CallerDep, metric: str) -> Response:
    """The distribution of a metric among the clips that the other filters of the address leave, as a part of the page."""
    params = [(name, value) for name, value in request.query_params.multi_items() if name != "metric"]
    query = _bound_query(urlencode(params), caller)
    return render_page(request, "histogram.html", {"histogram": clips_api.read_histogram(services, query, metric, BINS)})


@router.get("/clips/facets")
def show_facets(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """How many clips there are with each value of a filter, as a part of the page."""
    query = _bound_query(request.url.query, caller)
    params = [(name, value) for name, value in request.query_params.multi_items() if value.strip()]
    values = {
        "facets": clips_api.read_facets(services, query),
        "query": query,
        "tiers": tuple(Tier),
        "link": lambda **changes: change_params(params, changes),
    }
    return render_page(request, "facets.html", values)


def _bound_query(text: str, caller: Caller) -> ClipQuery:
    """The query of an address, of the caller's robots alone; raises `Forbidden` for another one."""
    query = parse_query(text)
    if query.robot is not None:
        caller.check_robot(query.robot)
    return replace(query, robots=caller.bounds.robots)


def parse_query(text: str) -> ClipQuery:
    """The query of an address; a filter without a value is none.

    Raises:
      InputRefused: a filter is not there or has a value that it cannot have.
    """
    params = parse_qsl(text)
    values: dict[str, Any] = {}
    for name, value in params:
        if name not in ClipQueryParams.model_fields:
            raise ParameterRefused("there is no such filter", key=name[:80], remedy="Take it out of the address")
        values[name] = [*values.get(name, ()), *split_tags([value])] if name == "tag" else value
    try:
        return ClipQueryParams.model_validate({"limit": _LIMIT} | values).to_query()
    except ValidationError as error:
        fault = error.errors()[0]
        raise ParameterRefused(fault["msg"], key=".".join(map(str, fault["loc"])), remedy="Correct the filter") from None


def _write_lines(base_url: str, params: Sequence[tuple[str, str]], *, has_key: bool) -> dict[str, str]:
    """The page's query as a command for curl, for Python and for the shell; the client takes the key from `AMPREF_TOKEN`.

    Args:
      params: of a query that was read: their names are those of filters.
    """
    filters = [(name, value) for name, value in params if name not in ("cursor", "limit", "tag")]
    filters += [("tag", tag) for tag in split_tags([value for name, value in params if name == "tag"])]
    address = f"{base_url}/v1/clips" + (f"?{urlencode(filters)}" if filters else "")
    curl = f"curl -sS {KEY_HEADER if has_key else ''}{shlex.quote(address)}"
    arguments: dict[str, Any] = {}
    shell = ["ampref", "clips"]
    for name, value in filters:
        number = _read_number(value)
        if name == "tag":
            arguments["tag"] = [*arguments.get("tag", ()), value]
        else:
            arguments[name] = value if number is None or name in ("robot", "name") else number
        side, _, metric = name.partition("_")
        if name == "min_duration_sec":
            shell += ["--min-duration-sec", value]
        elif side in ("min", "max"):
            shell += [f"--{side}", f"{metric}={value}"]
        else:
            option = {"gate_profile": "--profile"}.get(name, f"--{name}")
            shell += [f"{option}={value}"] if value.startswith("-") else [option, value]
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    python = (
        f"from amp_core.client import ApiClient\n\nwith ApiClient({json.dumps(base_url)}) as api:\n"
        f"    for clip in api.iter_clips({call}):\n"
        '        print(clip["id"], clip["name"], clip["rollout"] and clip["rollout"]["tier"])'
    )
    if base_url != DEFAULT_URL:
        shell += ["--url", base_url]
    return {"curl": curl, "python": python, "shell": shlex.join(shell)}


def _read_number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
