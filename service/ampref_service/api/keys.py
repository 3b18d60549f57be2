"""Keys over HTTP: one's own, and those that its holder may make, list and revoke."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from amp_core.errors import Forbidden, NotFound
from ampref_service.api.deps import AuthenticatorDep, CallerDep, ServicesDep, needs
from ampref_service.api.params import Body, IdOrKeyName, Time, View
from ampref_service.api.problems import BODY_STATUSES, responses
from ampref_service.api.strict import make_router
from ampref_service.catalog import keys
from ampref_service.catalog.records import Bounds, Key
from ampref_service.keys import MAX_BYTES, MAX_QUEUED, MAX_SEC, Caller, describe_key, make_bounds, make_key, resolve_scopes

router = make_router("keys")

Writer = Annotated[Caller, needs("keys:write")]
_Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,120}$")]
_Texts = Annotated[list[_Text], Field(max_length=50)]


class KeyView(BaseModel):
    """A key. Its text is not among it: nobody has that but its holder."""

    id: str
    name: str
    hint: str = Field(description="The last characters of its text.")
    state: str = Field(description="`valid`, `expired` or `revoked`.")
    scopes: list[str]
    datasets: list[str] | None = Field(description="Names and `prefix*` that it is bound to; null: all.")
    robots: list[str] | None = Field(description="Robots that it is bound to; null: all.")
    created_at: Time
    created_by: str
    expires_at: Time | None
    last_used_at: Time | None = Field(description="To the minute.")
    revoked_at: Time | None
    max_bytes: int | None
    max_queued: int | None
    max_planning_sec: float | None


class NewKeyView(KeyView):
    """A key that was made just now."""

    token: str = Field(description="Its text, this once.")


class KeyList(BaseModel):
    """Keys, the oldest first."""

    items: list[KeyView]


class UsageView(View):
    """What a key has used of its quotas."""

    bytes: int = Field(description="Of its clips.")
    queued: int = Field(description="Its jobs that wait or run.")
    planning_sec: float = Field(description="s of work of its jobs in 24 hours; a job that waits counts as they do on average.")


class SelfView(BaseModel):
    """Who a request is from, and what it may do."""

    name: str = Field(description="`key:NAME`, `user:NAME` of a proxy, or `anonymous` where no key is asked for.")
    scopes: list[str]
    datasets: list[str] | None
    robots: list[str] | None
    key: KeyView | None
    usage: UsageView | None = Field(description="What the key has used of its quotas.")


class KeyBody(Body):
    """A key to be made; it may have no more rights than its maker."""

    name: _Text
    scopes: _Texts = Field(default_factory=list, description="Of `docs/keys.md`.")
    roles: _Texts = Field(default_factory=list, description="Shorthands for scopes; `reader` where neither names any.")
    datasets: _Texts = Field(default_factory=list, description="Only these datasets, or `prefix*`; none: all.")
    robots: _Texts = Field(default_factory=list, description="Only these robots; none: all.")
    expires_in_sec: Annotated[float | None, Field(gt=0, le=MAX_SEC, allow_inf_nan=False)] = None
    max_bytes: Annotated[int | None, Field(ge=1, le=MAX_BYTES)] = None
    max_queued: Annotated[int | None, Field(ge=1, le=MAX_QUEUED)] = None
    max_planning_sec: Annotated[float | None, Field(gt=0, le=MAX_SEC, allow_inf_nan=False)] = None


@router.get("/self", response_model=SelfView, responses=responses())
def get_self(services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Who the request is from: its scopes and bounds, and the key with its expiry and quotas."""
    usage = None
    if caller.key is not None:
        with services.catalog.session() as session:
            usage = keys.get_usage(session, caller.key)
    return {
        "usage": usage,
        "name": caller.name,
        "scopes": sorted(caller.scopes),
        "datasets": caller.bounds.datasets,
        "robots": caller.bounds.robots,
        "key": None if caller.key is None else describe_key(caller.key),
    }


@router.get("", response_model=KeyList, responses=responses())
def list_keys(services: ServicesDep, caller: Writer) -> dict[str, Any]:
    """The keys with no more rights than the caller's, the oldest first."""
    with services.catalog.session() as session:
        return {"items": [describe_key(key) for key in keys.list_keys(session) if _is_within(key, caller)]}


@router.post("", status_code=201, response_model=NewKeyView, responses=responses(409, *BODY_STATUSES))
def create_key(body: KeyBody, services: ServicesDep, authenticator: AuthenticatorDep, caller: Writer) -> dict[str, Any]:
    """Make a key with no more rights than the caller's. The answer has its text, this once."""
    scopes, bounds = resolve_scopes(body.scopes, body.roles), make_bounds(body.datasets, body.robots)
    _check_rights(caller, scopes, bounds, body.expires_in_sec)
    options = body.model_dump(include={"expires_in_sec", "max_bytes", "max_queued", "max_planning_sec"})
    text, new = make_key(body.name, scopes, bounds, **options)
    with services.catalog.begin() as session:
        key = keys.add_key(session, new, actor=caller.name)
    authenticator.forget()
    return describe_key(key) | {"token": text}


@router.delete("/self", response_model=KeyView, responses=responses(404))
def revoke_self(services: ServicesDep, authenticator: AuthenticatorDep, caller: CallerDep) -> dict[str, Any]:
    """End the key that the request is made with, for good: it may have been seen by somebody."""
    if caller.key is None:
        raise NotFound(f"this request is made without a key, by {caller.name}", expected="a key in the header Authorization")
    with services.catalog.begin() as session:
        key = keys.revoke_key(session, caller.key.id, actor=caller.name)
    authenticator.forget()
    return describe_key(key)


@router.delete("/{key_id}", response_model=KeyView, responses=responses(404))
def revoke_key(key_id: IdOrKeyName, services: ServicesDep, authenticator: AuthenticatorDep, caller: Writer) -> dict[str, Any]:
    """End a key for good, by its id or name."""
    with services.catalog.begin() as session:
        key = keys.get_key(session, key_id)
        if not _is_within(key, caller):
            raise Forbidden(
                f"the key {key.name!r} has more rights than {caller.name}",
                remedy="Ask the operator: ampref token revoke ID",
            )
        key = keys.revoke_key(session, key.id, actor=caller.name)
    authenticator.forget()
    return describe_key(key)


def _is_within(key: Key, caller: Caller) -> bool:
    return caller.scopes.issuperset(key.scopes) and caller.bounds.covers(key.bounds)


def _check_rights(caller: Caller, scopes: tuple[str, ...], bounds: Bounds, expires_in_sec: float | None) -> None:
    """Raise `Forbidden` for a key with more rights than its maker."""
    caller.check_scope(*scopes)
    left = None if caller.key is None else caller.key.expires_in_sec
    if not caller.bounds.covers(bounds):
        excess = "other datasets or robots than its maker's"
    elif left is not None and (expires_in_sec is None or expires_in_sec > left):
        excess = "a longer life than its maker"
    elif caller.key is not None and caller.key.has_quota:
        excess = "a quota beside its maker's"
    else:
        return
    raise Forbidden(
        f"the new key would have {excess}",
        expected="no more rights than the key that makes it",
        remedy="Leave that out, or ask the operator: ampref token create NAME",
    )
