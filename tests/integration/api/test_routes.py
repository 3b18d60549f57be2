"""Every route with no key, one that is not valid, one without its scope, one that is bound elsewhere, and the right one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from keykit import add_key, bearer

from ampref_service.catalog import statistics
from ampref_service.keys import SCOPES
from ampref_service.web.assets import load_assets
from ampref_service.web.site import PageRoute

DATASET, ROBOT = "dataset", "robot"
ELSEWHERE = {DATASET: {"datasets": ("run*",)}, ROBOT: {"robots": ("atlas",)}}
AXIS = {"unit": "", "bin": 1.0, "from": 0.0}
EMPTY_STATISTICS: dict[str, Any] = {
    **{"num_frames": 0, "control_dt": 0.02, "outlier_z": 6.0, "features": [], "phases": []},
    "turning": {"speed": AXIS, "turn": AXIS, "frames": []},
    "balance": {"num_sources": 0} | {name: [] for name in ("sources", "augmentations", "tags", "modes", "buckets", "tiers")},
}
STANDING = {
    "fps": 50.0,
    "root_pos": [[0.0, 0.0, 0.45]] * 51,
    "root_rot": [[0.0, 0.0, 0.0, 1.0]] * 51,
    "dof_pos": [[0.0] * 8] * 51,
}


@dataclass(frozen=True)
class Access:
    """What a route needs, and a request for it.

    Args:
      scope: None for a public route, empty where any valid key will do; several are separated by a space.
      bound: what a key can be bound to that keeps this address out of its reach.
      is_list: whether what is out of reach is left out, and not 403.
      is_page: whether it is a page: without a key it leads to the login.
      request: of the HTTP library; texts are filled with the ids of `Locked`.
    """

    scope: str | None
    bound: str | None = None
    is_list: bool = False
    is_page: bool = False
    request: dict[str, Any] = field(default_factory=dict)


def read_clips(**options: Any) -> Access:
    return Access("clips:read", ROBOT, **options)


def write_clips(**options: Any) -> Access:
    return Access("clips:write", ROBOT, request=options)


def read_dataset(**options: Any) -> Access:
    return Access("datasets:read", DATASET, **options)


def write_dataset(**options: Any) -> Access:
    return Access("datasets:write", DATASET, request=options)


def write_webhooks(**options: Any) -> Access:
    return Access("webhooks:write", request=options)


def open_page(scope: str, bound: str | None = None, **options: Any) -> Access:
    return Access(scope, bound, is_page=True, **options)


LOCKING = "clips:read datasets:write"
VERSION = "/v1/datasets/{name}/versions/{version}"
PAGE = "/datasets/{name}/versions/{version}"
ROUTES = {
    "GET /": Access(None),
    "GET /docs": Access(None),
    "GET /assets/{asset}": Access(None),
    "GET /clips": open_page("clips:read", ROBOT, is_list=True),
    "GET /clips/histogram": open_page("clips:read", ROBOT, is_list=True, request={"params": {"metric": "slip_rate"}}),
    "GET /clips/facets": open_page("clips:read", ROBOT, is_list=True),
    "GET /clips/{clip_id}": open_page("clips:read", ROBOT),
    **{f"GET /clips/{{clip_id}}/{form}": open_page("clips:read", ROBOT) for form in ("rollouts", "variants", "delete")},
    "POST /clips/{clip_id}/rollouts": open_page("clips:write", ROBOT, request={"data": {"mode": "rollout", "seed": "6"}}),
    "POST /clips/{clip_id}/variants": open_page("clips:write", ROBOT, request={"data": {"augmentation": "mirror"}}),
    "POST /clips/{clip_id}/delete": open_page("clips:write", ROBOT),
    "GET /compare": open_page("clips:read", request={"params": {"rollout": "{rollout_id}"}}),
    "GET /datasets": open_page("datasets:read", is_list=True),
    **{f"GET {page}": open_page("datasets:read", DATASET) for page in ("/datasets/{name}", PAGE, f"{PAGE}/statistics")},
    **{
        f"POST {PAGE}/{action}": open_page("datasets:write", DATASET, request={"data": {"reason": "for the tests"}})
        for action in ("yank", "unyank", "archive", "unarchive")
    },
    "POST /datasets/{name}/aliases": open_page("datasets:write", DATASET, request={"data": {"alias": "x", "version": "0.1.0"}}),
    "POST /datasets/{name}/aliases/{alias}/remove": open_page("datasets:write", DATASET),
    "GET /lock": open_page(LOCKING, request={"params": {"clip": "{clip_id}"}}),
    "POST /lock": open_page(LOCKING, request={"data": {"name": "walk", "version": "9.9.9", "tier": "0", "clip": "{clip_id}"}}),
    "GET /jobs": open_page("jobs:read", ROBOT, is_list=True),
    "POST /jobs/{job_id}/cancel": open_page("jobs:write", ROBOT),
    "POST /jobs/{job_id}/retry": open_page("jobs:write", ROBOT),
    "GET /openapi.json": Access(None),
    **{f"GET {prefix}/{probe}": Access(None) for prefix in ("", "/v1") for probe in ("healthz", "readyz")},
    **{f"GET {prefix}/metrics": Access("metrics:read") for prefix in ("", "/v1")},
    "POST /v1/clips": write_clips(files={"file": ("walk.json", "{motion}")}, data={"robot": "wildrobot"}),
    "POST /v1/clips:batch": write_clips(content=bytes(1024), headers={"content-type": "application/x-tar"}),
    "GET /v1/clips": read_clips(is_list=True),
    "GET /v1/clips/histogram": read_clips(is_list=True, request={"params": {"metric": "slip_rate"}}),
    "GET /v1/clips/facets": read_clips(is_list=True),
    "GET /v1/clips/{clip_id}": read_clips(),
    "GET /v1/clips/{clip_id}/file": read_clips(),
    "HEAD /v1/clips/{clip_id}/file": read_clips(),
    "DELETE /v1/clips/{clip_id}": write_clips(),
    "POST /v1/clips/{clip_id}/rollouts": write_clips(json={"mode": "rollout", "seed": 5}),
    "POST /v1/clips/{clip_id}/augment": write_clips(json={"augmentations": ["mirror"]}),
    "GET /v1/rollouts/{rollout_id}": read_clips(),
    "GET /v1/rollouts/{rollout_id}/arrays": read_clips(),
    "HEAD /v1/rollouts/{rollout_id}/arrays": read_clips(),
    "GET /v1/rollouts/{rollout_id}/frames": read_clips(),
    "GET /v1/rollouts/{rollout_id}/thumbnail": read_clips(),
    "HEAD /v1/rollouts/{rollout_id}/thumbnail": read_clips(),
    "POST /v1/arrays": read_clips(is_list=True, request={"json": {"digests": ["{arrays}"]}}),
    "GET /v1/jobs": Access("jobs:read", ROBOT, is_list=True),
    "GET /v1/jobs/{job_id}": Access("jobs:read", ROBOT),
    "GET /v1/jobs/{job_id}/events": Access("jobs:read", ROBOT),
    "DELETE /v1/jobs/{job_id}": Access("jobs:write", ROBOT),
    "POST /v1/jobs/{job_id}/retry": Access("jobs:write", ROBOT),
    "GET /v1/events": Access("jobs:read", ROBOT, is_list=True),
    "POST /v1/webhooks": write_webhooks(json={"url": "https://hooks.example.org/"}),
    "GET /v1/webhooks": write_webhooks(),
    "GET /v1/webhooks/{webhook_id}": write_webhooks(),
    "DELETE /v1/webhooks/{webhook_id}": write_webhooks(),
    "POST /v1/webhooks/{webhook_id}/test": write_webhooks(),
    "POST /v1/webhooks/{webhook_id}/retry": write_webhooks(),
    "GET /v1/workers": Access("jobs:read"),
    "GET /v1/datasets": read_dataset(is_list=True),
    "GET /v1/datasets/{name}": read_dataset(),
    "GET /v1/datasets/{name}/diff": read_dataset(request={"params": {"before": "0.1.0", "after": "0.1.0"}}),
    "PUT /v1/datasets/{name}/aliases/{alias}": write_dataset(json={"version": "0.1.0"}),
    "DELETE /v1/datasets/{name}/aliases/{alias}": write_dataset(),
    "POST /v1/datasets/{name}/versions": write_dataset(json={"version": "0.7.0"}),
    f"GET {VERSION}": read_dataset(),
    f"POST {VERSION}/yank": write_dataset(json={"reason": "for the tests"}),
    f"POST {VERSION}/unyank": write_dataset(),
    # A digest of another version: nothing is archived.
    f"POST {VERSION}/archive": write_dataset(json={"reason": "old", "expected_manifest_sha256": "sha256:" + "0" * 64}),
    f"POST {VERSION}/unarchive": write_dataset(),
    f"GET {VERSION}/members": read_dataset(),
    f"GET {VERSION}/files/{{file}}": read_dataset(),
    f"HEAD {VERSION}/files/{{file}}": read_dataset(),
    f"GET {VERSION}/verification": read_dataset(),
    f"GET {VERSION}/pulls": read_dataset(),
    f"GET {VERSION}/statistics": read_dataset(),
    "POST /v1/purges": Access("clips:purge", ROBOT, is_list=True, request={"json": {"older_than_days": 90}}),
    "GET /v1/robots": read_clips(is_list=True),
    "GET /v1/robots/{robot}": read_clips(),
    "GET /v1/robots/{robot}/scene": read_clips(),
    **{f"GET /{page}": Access(None) for page in ("login",)},
    **{f"POST /{page}": Access(None) for page in ("login", "logout")},
    "POST /v1/clips/{clip_id}/file/link": Access("clips:read", ROBOT, request={"json": {}}),
    "POST /v1/rollouts/{rollout_id}/arrays/link": Access("clips:read", ROBOT, request={"json": {}}),
    f"POST {VERSION}/files/{{file}}/link": Access("datasets:read", DATASET, request={"json": {}}),
    "GET /v1/keys/self": Access(""),
    "DELETE /v1/keys/self": Access(""),
    "GET /v1/keys": Access("keys:write"),
    "POST /v1/keys": Access("keys:write", request={"json": {"name": "child", "scopes": ["keys:write"]}}),
    "DELETE /v1/keys/{key_id}": Access("keys:write"),
    "GET /v1/audit": Access("audit:read"),
    "GET /v1/schema/metrics": Access("clips:read"),
    "GET /v1/schema/modes": Access("clips:read"),
    "GET /v1/schema/gates/{profile}": Access("clips:read"),
}


@dataclass
class Locked:
    """A service that asks for keys, with something at every address; `keys` are texts by name."""

    api: Any
    ids: dict[str, str]
    keys: dict[str, str]

    def ask(self, route: str, key: str | None) -> Any:
        method, path = route.split()
        options = _fill(ROUTES[route].request, self.ids)
        headers = options.pop("headers", {}) | ({} if key is None else bearer(self.keys[key]))
        path = path.format(**self.ids)
        return self.api.http.request(method, path, headers=headers, follow_redirects=False, **options)


def _fill(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_fill(item, ids) for item in value)
    if isinstance(value, dict):
        return {key: _fill(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, ids) for item in value]
    return value.format(**ids) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def locked(fresh: Any) -> Locked:
    clip_id = fresh.scored(1)
    version = fresh.lock()
    with fresh.catalog.begin() as session:  # As if they were computed: its features are no archive.
        statistics.put_statistics(session, version.id, EMPTY_STATISTICS)
    job_id = fresh.post(2).json()["job"]["id"]
    fresh.http.delete(f"/v1/jobs/{job_id}")  # Else its events would not end.
    rollout = fresh.http.get(f"/v1/clips/{clip_id}").json()["rollouts"][0]
    ids = {
        **{"clip_id": clip_id, "rollout_id": rollout["id"], "arrays": rollout["arrays_digest"], "job_id": job_id},
        **{"name": "walk", "version": "0.1.0", "alias": "prod", "file": "features_v0.1.0.npz"},
        **{
            "robot": "wildrobot",
            "profile": "amp-0.12",
            "asset": load_assets().icon,
            "key_id": "key_none",
            "webhook_id": "webhook_1",
            "motion": json.dumps(STANDING),
        },
    }
    keys = {scope: add_key(fresh.app, scope.replace(":", "-"), scope)[0] for scope in SCOPES}
    for scope in SCOPES:
        others = [name for name in SCOPES if name != scope]
        keys[f"all but {scope}"] = add_key(fresh.app, f"without-{scope.replace(':', '-')}", *others)[0]
    keys[LOCKING] = add_key(fresh.app, "locking", *LOCKING.split())[0]
    keys |= {bound: add_key(fresh.app, f"elsewhere-{bound}", **options)[0] for bound, options in ELSEWHERE.items()}
    keys["expired"] = add_key(fresh.app, "expired", expires_in_sec=-1.0)[0]
    keys["revoked"] = add_key(fresh.app, "revoked", revoked=True)[0]
    keys["disposable"] = add_key(fresh.app, "disposable")[0]
    return Locked(fresh, ids, keys)


def list_routes(routes: Any) -> Iterator[str]:
    """`METHOD path` of every route of an application."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from list_routes(route.original_router.routes)
        else:
            methods = route.methods or ()
            # The framework answers HEAD for a plain route of GET, and pages do; both lead to the same function.
            has_own_head = isinstance(route, APIRoute) and not isinstance(route, PageRoute)
            yield from (f"{method} {route.path}" for method in methods if has_own_head or method != "HEAD")


def test_every_route_is_in_the_table(locked: Locked) -> None:
    app: FastAPI = locked.api.app
    assert set(list_routes(app.routes)) == set(ROUTES)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_a_key_with_its_scope_and_bounds(locked: Locked, route: str) -> None:
    access = ROUTES[route]
    if access.scope is None:
        assert locked.ask(route, None).status_code in (200, 303, 307) or route == "POST /login"
        return
    if access.is_page:
        check_page(locked, route, access)
        return
    for key in (None, "expired", "revoked"):
        answer = locked.ask(route, key)
        assert answer.status_code == 401, key
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.request.method == "HEAD" or answer.json()["type"] == "urn:ampref:error:unauthorized"
    if access.scope:
        answer = locked.ask(route, f"all but {access.scope}")
        assert answer.status_code == 403
        assert answer.request.method == "HEAD" or access.scope in answer.json()["detail"]
    if access.bound is not None and not access.is_list:
        answer = locked.ask(route, access.bound)
        assert answer.status_code == 403
        assert answer.request.method == "HEAD" or access.bound in answer.json()["detail"]
    elif access.bound is not None:
        answer = locked.ask(route, access.bound)
        assert answer.status_code in (200, 404)
        assert not answer.json().get("items")
    answer = locked.ask(route, access.scope or "disposable")
    assert answer.status_code < 300 or answer.status_code in (404, 409), answer.text


def check_page(locked: Locked, route: str, access: Access) -> None:
    for key in (None, "expired", "revoked"):
        answer = locked.ask(route, key)
        assert answer.status_code == 303, key
        assert answer.headers["location"].startswith("/login?next=%2F")
    for scope in str(access.scope).split():
        answer = locked.ask(route, f"all but {scope}")
        assert answer.status_code == 403
        assert answer.headers["content-type"].startswith("text/html")
        assert scope in answer.text
    if access.bound is not None:
        answer = locked.ask(route, access.bound)
        assert answer.status_code == (200 if access.is_list else 403)
        assert locked.ids["clip_id"] not in answer.text
    assert locked.ask(route, access.scope).status_code in (200, 303, 404, 409)
