"""Webhooks: addresses that the workers send events to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Response
from pydantic import BaseModel, Field

from ampref_service.api.deps import ServicesDep, needs
from ampref_service.api.params import Body, DatasetName, Id, RobotName, Time, View
from ampref_service.api.problems import BODY_STATUSES, responses
from ampref_service.api.strict import make_router
from ampref_service.catalog import webhooks
from ampref_service.catalog.records import EventFilter, EventKind, Webhook
from ampref_service.keys import Caller
from ampref_service.webhooks import check_url, make_secret

router = make_router("webhooks")

Writer = Annotated[Caller, needs("webhooks:write")]


class WebhookBody(Body):
    """Where to send which events."""

    url: str = Field(max_length=2000, description="https://… or http://…")
    kinds: list[EventKind] = Field([], max_length=20, description="Left out or empty: all.")
    dataset: DatasetName | None = Field(None, description="Only events of this dataset.")
    robot: RobotName | None = Field(None, description="Only events of this robot.")


class WebhookTest(BaseModel):
    """How the last test ended."""

    id: str = Field(description="The `webhook-id` that it was sent with.")
    state: Literal["pending", "delivered", "failed"]
    detail: str | None
    at: Time


class WebhookView(View):
    """An address, how far it is, and how it fails."""

    id: str
    url: str
    kinds: list[EventKind]
    dataset: str | None
    robot: str | None
    state: Literal["active", "quarantined"]
    reason: str | None = Field(description="Why it is quarantined.")
    position: int = Field(description="Events up to this one were delivered or are not for it.")
    pending: int = Field(description="How many events come behind that, of whatever kind.")
    failures: int = Field(description="How often in a row its next event could not be delivered.")
    last_failure: str | None
    delivered_at: Time | None
    created_at: Time
    test: WebhookTest | None


class NewWebhookView(WebhookView):
    """A webhook that was just made."""

    secret: str = Field(description="Signs the deliveries; it is not shown again.")


class WebhookList(BaseModel):
    """Every webhook that the key may see, the oldest first."""

    items: list[WebhookView]


def _owner(caller: Caller) -> str | None:
    """Whose webhooks the caller may reach; None for everybody's."""
    return None if caller.bounds.is_open else caller.owner


@router.post("", status_code=201, response_model=NewWebhookView, responses=responses(409, *BODY_STATUSES))
def add_webhook(body: WebhookBody, services: ServicesDep, response: Response, caller: Writer) -> dict[str, Any]:
    """Have events sent to an address from now on. The answer has the secret, which is not shown again."""
    caller.check_key("a webhook")
    if body.dataset is not None:
        caller.check_dataset(body.dataset)
    if body.robot is not None:
        caller.check_robot(body.robot)
    host = check_url(body.url, services.settings.webhook_allow)
    secret = make_secret()
    criteria = EventFilter(tuple(dict.fromkeys(body.kinds)), body.dataset, body.robot, caller.bounds)
    key_id = None if caller.key is None else caller.key.id
    with services.catalog.begin() as session:
        webhook = webhooks.add(
            session, body.url, secret, criteria, owner=caller.owner, key_id=key_id, actor=caller.name, host=host
        )
    response.headers["location"] = f"/v1/webhooks/{webhook.id}"
    return WebhookView.model_validate(webhook).model_dump() | {"secret": secret}


@router.get("", response_model=WebhookList, responses=responses())
def list_webhooks(services: ServicesDep, caller: Writer) -> dict[str, list[Webhook]]:
    """Every webhook, the oldest first."""
    with services.catalog.session() as session:
        return {"items": webhooks.list_webhooks(session, owner=_owner(caller))}


@router.get("/{webhook_id}", response_model=WebhookView, responses=responses(404))
def get_webhook(webhook_id: Id, services: ServicesDep, caller: Writer) -> Webhook:
    """One webhook, with its last failure and its last test."""
    with services.catalog.session() as session:
        return webhooks.get(session, webhook_id, owner=_owner(caller))


@router.delete("/{webhook_id}", status_code=204, responses=responses(404))
def remove_webhook(webhook_id: Id, services: ServicesDep, caller: Writer) -> None:
    """Send nothing more to an address."""
    with services.catalog.begin() as session:
        webhooks.get(session, webhook_id, owner=_owner(caller))
        webhooks.remove(session, webhook_id, actor=caller.name)


@router.post("/{webhook_id}/test", status_code=202, response_model=WebhookView, responses=responses(404))
def send_test(webhook_id: Id, services: ServicesDep, caller: Writer) -> Webhook:
    """Have a worker send a `webhook.test`; how it ended is in the webhook's `test` soon after."""
    with services.catalog.begin() as session:
        webhooks.get(session, webhook_id, owner=_owner(caller))
        webhooks.request_test(session, webhook_id)
        return webhooks.get(session, webhook_id)


@router.post("/{webhook_id}/retry", response_model=WebhookView, responses=responses(404))
def retry_webhook(webhook_id: Id, services: ServicesDep, caller: Writer) -> Webhook:
    """Try at once, with as many tries as a new one has, also what was quarantined; it goes on where it stopped."""
    with services.catalog.begin() as session:
        webhooks.get(session, webhook_id, owner=_owner(caller))
        webhooks.retry(session, webhook_id, actor=caller.name)
        return webhooks.get(session, webhook_id)
