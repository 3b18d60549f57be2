"""`ampref webhook`: addresses that events are sent to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

from typer import Argument, Option, Typer

from amp_core.cli.group import SummaryGroup
from amp_core.cli.options import Json, Quiet, Url
from amp_core.cli.output import Cell, Output
from amp_core.cli.remote import connect
from amp_core.cli.text import counted

_POLL_SEC = 0.5

webhook = Typer(
    cls=SummaryGroup,
    help="Have events sent to an address; list, test, retry and remove what was added.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _describe_state(row: Mapping[str, Any]) -> str:
    if row["state"] == "quarantined":
        return f"quarantined: {row['reason']}"
    if row["failures"]:
        return f"failed {counted(row['failures'], 'time')}: {row['last_failure']}"
    return _count_pending(row) if row["pending"] else "up to date"


def _count_pending(row: Mapping[str, Any]) -> str:
    return f"{counted(row['pending'], 'event')} {'waits' if row['pending'] == 1 else 'wait'}"


def _test_state(row: Mapping[str, Any]) -> str:
    return str(row["test"]["state"]) if row["test"] else "pending"


COLUMNS: dict[str, Cell] = {
    "Webhook": "id",
    "URL": "url",
    "Kinds": lambda row: ", ".join(row["kinds"]) or "all",
    "Dataset": "dataset",
    "Robot": "robot",
    "State": _describe_state,
}
Id = Annotated[str, Argument(metavar="ID", help="The webhook's id.")]


@webhook.command("add")
def add_webhook(
    address: Annotated[str, Argument(metavar="URL", help="Where to send events: https://…")],
    kind: Annotated[
        list[str] | None, Option(help="Only these kinds, such as clip.scored,version.locked; may be repeated.")
    ] = None,
    dataset: Annotated[str | None, Option(help="Only of this dataset.")] = None,
    robot: Annotated[str | None, Option(help="Only of this robot.")] = None,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Have events sent to an address from now on, and print the secret that signs them; it is not shown again."""
    out = Output(json_out, quiet=quiet)
    kinds = [name.strip() for text in kind or () for name in text.split(",") if name.strip()]
    with connect(url, out) as api:
        row = api.add_webhook(address, kinds=kinds, dataset=dataset, robot=robot)
    out.print_result(row, [row["id"], row["secret"]])
    out.print(f"{row['id']} gets {', '.join(row['kinds']) or 'every event'} from now on")
    out.print(f"  secret  {row['secret']}")
    out.print(f"\nkeep the secret, it is not shown again; next: ampref webhook test {row['id']}")


@webhook.command("list")
def list_webhooks(url: Url = None, json_out: Json = None, quiet: Quiet = False) -> None:
    """List the webhooks, how far each is and how it fails."""
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        rows = api.list_webhooks()
    out.print_result(rows, (row["id"] for row in rows))
    if rows:
        out.print_table(COLUMNS, rows)
    else:
        out.print("there is no webhook; next: ampref webhook add URL")


@webhook.command("remove")
def remove_webhook(webhook_id: Id, url: Url = None, json_out: Json = None, quiet: Quiet = False) -> None:
    """Send nothing more to an address."""
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        api.remove_webhook(webhook_id)
    out.print_result({"id": webhook_id}, [webhook_id])
    out.print(f"{webhook_id} is removed")


@webhook.command("test")
def send_test(
    webhook_id: Id,
    timeout: Annotated[float, Option(min=0, help="Seconds to wait for a worker to send it.")] = 30.0,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Send a webhook.test now and say how it ended; exit 1 when it was not delivered."""
    out = Output(json_out, quiet=quiet)
    end = time.monotonic() + timeout
    with connect(url, out) as api:
        row = api.test_webhook(webhook_id)
        while _test_state(row) == "pending" and time.monotonic() < end:
            time.sleep(_POLL_SEC)
            row = api.get_webhook(webhook_id)
    state, detail = _test_state(row), (row["test"] or {}).get("detail")
    out.print_result(row, [state])
    if state == "pending":
        detail = f"no worker has sent it within {timeout:g} s; ampref jobs shows whether one is at work"
    out.print(f"{webhook_id}: {state}" + (f": {detail}" if detail else ""))
    out.exit(failed=state != "delivered")


@webhook.command("retry")
def retry_webhook(webhook_id: Id, url: Url = None, json_out: Json = None, quiet: Quiet = False) -> None:
    """Try at once, also what was quarantined; it goes on where it stopped."""
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        row = api.retry_webhook(webhook_id)
    out.print_result(row, [row["state"]])
    out.print(f"{webhook_id} is {row['state']}; {_count_pending(row)}")
