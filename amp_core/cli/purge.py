"""`ampref purge`: delete what has been of no use for long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from typer import Option

from amp_core.cli.options import Json, Quiet, Url, parse_period
from amp_core.cli.output import Output
from amp_core.cli.remote import connect
from amp_core.cli.text import counted, size

_DAY_SEC = 86_400.0


def purge(
    older_than: Annotated[
        float, Option(metavar="PERIOD", parser=parse_period, help="What is younger stays: 90d, 12w; clip and rollouts.")
    ],
    tier: Annotated[
        Literal["rejected", "unscored"], Option(help="Clips whose best rollout is Rejected, or those that nothing scored.")
    ] = "rejected",
    robot: Annotated[str | None, Option(help="Only clips for this robot.")] = None,
    unreferenced_rollouts: Annotated[
        bool, Option("--unreferenced-rollouts", help="No clip, but the Rejected rollouts that are the best of nothing.")
    ] = False,
    yes: Annotated[bool, Option("--yes", help="Do it; without, show what would go.")] = False,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Delete Rejected clips of long ago, with their rollouts. Without --yes it shows what would go.

    What a version holds stays, unless it is archived, and so does what has a queued or running job.
    """
    out = Output(json_out, quiet=quiet)
    body: dict[str, Any] = {
        **{"older_than_days": older_than / _DAY_SEC, "tier": tier, "robot": robot},
        "unreferenced_rollouts": unreferenced_rollouts,
    }
    with connect(url, out, patient=yes) as api:
        total = api.purge(**body, dry_run=True)
        if yes:
            noun = "rollouts" if unreferenced_rollouts else "clips"
            left = total["remaining"]
            counts = dict.fromkeys(("clips", "rollouts", "bytes"), 0)
            with out.progress("purging", total=left) as progress:
                while left:
                    part = api.purge(**body, dry_run=False)
                    counts = {name: counts[name] + part[name] for name in counts}
                    left = part["remaining"] if part[noun] else 0
                    progress.update(counts[noun])
            total |= counts | {"dry_run": False, "remaining": part["remaining"] if counts[noun] else 0}
    out.print_result(total)
    verb = "gone" if yes else "would go"
    out.print(f"{verb}: {counted(total['clips'], 'clip')}, {counted(total['rollouts'], 'rollout')}, {size(total['bytes'])}")
    if yes:
        out.print("the files go with the collector, once they are older than AMPREF_BLOB_GRACE_SEC")
        return
    for name in total["names"]:
        out.print(f"  {name}")
    if total["clips"] > len(total["names"]):
        out.print(f"  and {total['clips'] - len(total['names'])} more")
    if total["with_windows"]:
        have = "has" if total["with_windows"] == 1 else "have"
        out.warn(
            f"{counted(total['with_windows'], 'clip')} of these {have} windows that pass; dataset lock --segments takes those"
        )
    out.print("nothing was done; next: the same with --yes")
