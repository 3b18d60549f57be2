"""`ampref dataset`: lock versions, look at them, point aliases at them, warn people off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Json, Output, Quiet, counted, size, tier_name
from amp_core.cli.recipes import check_mode, parse_physics
from amp_core.cli.remote import Timeout, Url, connect, told_to_go_on, wait_for_job
from amp_core.errors import AmprefError, InputRefused
from amp_core.tiers import Tier

if TYPE_CHECKING:
    from amp_core.client import ApiClient

app = typer.Typer(help="Lock, list, show and compare dataset versions.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name, for example walk.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="An exact version, for example 0.11.0.")]


@app.command("lock")
def lock(
    name: Name,
    version: Version,
    tier: Annotated[
        list[int] | None, typer.Option(min=0, max=1, help="Take this tier, 0 or 1; may be repeated; default 0 alone.")
    ] = None,
    robot: Annotated[str | None, typer.Option(help="For this robot; default wildrobot.")] = None,
    mode: Annotated[str | None, typer.Option(help="Take each clip's best rollout in this mode.")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="DIGEST", help="Take the rollouts of this recipe, alone.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Clips with this tag; may be repeated, all must be there.")] = None,
    clip: Annotated[list[str] | None, typer.Option(help="This clip, by id or name; may be repeated; default all.")] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Also take the passing windows of clips that fail as a whole.")
    ] = False,
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            help="Take each clip in these physics: canonical, factors such as friction=0.7,mass=1.1, or all; may be repeated."
        ),
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option(
            metavar='ID="REASON"', help="Lock although this test fails, and keep the reason with the version; may be repeated."
        ),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Point this alias at the version afterwards; may be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is locked.")] = True,
    url: Url = None,
    timeout: Timeout = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Gather the clips that a query selects, test them and lock them as a version that never changes.

    The ten tests of ampref verify run before the lock. One that fails stops it, unless it is waived by name with a reason.
    """
    waivers = _waivers(waive or ())
    if alias and not wait:
        raise typer.BadParameter("an alias needs the locked version; drop --no-wait", param_hint="--alias")
    check_mode(mode, of_rollouts=True)
    for one in alias or ():
        _check_alias(one)
    select: dict[str, Any] = {"tier": tier or [0], "segments": segments}
    given = {"robot": robot, "mode": mode, "recipe": recipe, "tags": tag, "clips": clip, "buckets": _buckets(bucket or ())}
    select.update({key: value for key, value in given.items() if value})
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out, patient=True) as api:
        locking = api.lock_version(name, version, select=select, waivers=waivers or None)
        if locking["pending_clips"]:
            out.warn(
                f"{locking['pending_clips']} clips that fit are still being scored; what is not done when the lock begins is "
                "not in it"
            )
        if not wait:
            out.document(locking)
            out.values([locking["job"]["id"]])
            out.say(f"{name}=={version} is being locked\nnext: ampref job {locking['job']['id']} --wait")
            return
        with (
            told_to_go_on(out, lambda: [locking["job"]["id"]]),
            out.progress(f"locking {name}=={version}", total=1) as progress,
        ):
            wait_for_job(api, locking["job"], progress, label=f"{name}=={version}", timeout=timeout)
        unset = _set_aliases(api, out, name, version, alias or ())
        found = api.get_version(name, version) | {"contents": contents(api.get_manifest(name, version))}
    out.document(found)
    out.values([found["manifest_sha256"]])
    print_version(out, found)
    print_readiness(out, found["readiness"])
    _warn_of(out, found)
    if unset:
        raise typer.Exit(1)
    ready = (found["readiness"] or {}).get("ready", True)
    out.say(
        f"\nnext, on a training node: ampref pull {name}=={version}"
        if ready
        else f"\nit is not ready for training, see above; to use it all the same: ampref pull {name}=={version}"
    )


def _buckets(given: Sequence[str]) -> str | list[dict[str, float]]:
    """What `--bucket` names, as a selection has it."""
    if "all" not in given:
        return [asdict(scale) for scale in parse_physics(given, "--bucket")]
    if len(set(given)) > 1:
        raise typer.BadParameter("all are all; drop the others", param_hint="--bucket")
    return "all"


def _waivers(given: Sequence[str]) -> list[dict[str, str]]:
    """What `--waive ID="REASON"` says; what cannot be meant is wrong usage."""
    from amp_core.readiness import check_waivers

    parts = [one.partition("=") for one in given]
    try:
        return list(check_waivers({"test": test.strip(), "reason": reason} for test, _, reason in parts))
    except InputRefused as error:
        raise typer.BadParameter(f"{error.what}; expected {error.expected}", param_hint="--waive") from None


def _check_alias(alias: str) -> None:
    """Refuse, before anything is locked, an alias that the service would refuse afterwards."""
    from amp_core.dataset.names import check_alias

    try:
        check_alias(alias)
    except InputRefused as error:
        raise typer.BadParameter(f"{error.what}; expected {error.expected}", param_hint="--alias") from None
    if alias == "latest":
        raise typer.BadParameter("latest is computed and cannot be set; choose another alias", param_hint="--alias")


def _set_aliases(api: ApiClient, out: Output, name: str, version: str, aliases: Sequence[str]) -> bool:
    """Point the aliases at a version that is locked by now; whether one of them could not be set."""
    failed = False
    for alias in aliases:
        try:
            api.set_alias(name, alias, version)
        except AmprefError as error:
            failed = True
            error.what = f"{name}=={version} is locked, but the alias {alias!r} is not set: {error.what}"
            error.remedy = f"Set it with: ampref dataset alias {name} {alias} {version}"
            out.error(error)
    return failed


def contents(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a version is made of: its clips by tier, the digests of the recipes that made them, how frames are weighted."""
    tiers, frames = (
        {str(tier): int(count) for tier, count in manifest["gates"][key].items()} for key in ("clips_by_tier", "frames_by_tier")
    )
    recipes = sorted({clip["recipe_digest"] for clip in manifest["clips"]})
    return {"clips_by_tier": tiers, "frames_by_tier": frames, "recipes": recipes, "weighting": manifest.get("weighting")}


def _tiers(by_tier: Mapping[str, int]) -> str:
    return ", ".join(f"{by_tier[str(tier)]} {tier.label}" for tier in Tier if by_tier.get(str(tier))) or "-"


def _windows_alone(held: Mapping[str, Any]) -> bool:
    """Whether clips that are not Tier 0 take part by their Tier 0 windows."""
    return set(held["frames_by_tier"]) == {"0"} and set(held["clips_by_tier"]) != {"0"}


def _warn_of(out: Output, found: Mapping[str, Any]) -> None:
    """Say what a version holds that a training set usually does not."""
    held, name = found["contents"], f"{found['dataset']}=={found['version']}"
    # By what is taken: the Tier 0 windows of a Rejected clip are training data.
    if any(count for tier, count in held["frames_by_tier"].items() if tier != "0"):
        frames = ", ".join(
            f"{count} frames of {tier_name(int(tier))}" for tier, count in sorted(held["frames_by_tier"].items())
        )
        out.warn(f"{name} holds {frames}: for a curriculum, not for training")
    # Each bucket has a recipe of its own, and was asked for by name.
    if len(held["recipes"]) > max(1, len(found.get("buckets") or ())):
        out.warn(
            f"{name} holds rollouts of {len(held['recipes'])} recipes; --recipe DIGEST takes those of one: "
            + ", ".join(held["recipes"])
        )


def print_version(out: Output, found: dict[str, Any]) -> None:
    """A locked version for people."""
    state = f"yanked: {found['yank_reason']}" if found["yanked"] else "locked"
    out.say(
        f"{found['dataset']}=={found['version']} ({state}): {counted(found['num_clips'], 'clip')}, {found['num_frames']} frames"
    )
    out.say(f"  robot            {found['robot']}")
    held, recipes = found["contents"], found["contents"]["recipes"]
    windows = " (clips; of those that are not Tier 0, Tier 0 windows)" if _windows_alone(held) else ""
    out.say(f"  tiers            {_tiers(held['clips_by_tier'])}{windows}")
    out.say(f"  recipes          {recipes[0] if len(recipes) == 1 else len(recipes)}")
    for bucket in _scaled(found.get("buckets") or ()):
        out.say(f"  bucket           {bucket['name']}: {counted(bucket['num_clips'], 'clip')}, {bucket['num_frames']} frames")
    for label, text in _coverage(found.get("coverage"), held.get("weighting")):
        out.say(f"  {label:<16} {text}")
    out.say(f"  aliases          {', '.join(found['aliases']) or '-'}")
    out.say(f"  dataset_hash     {found['dataset_hash']}")
    out.say(f"  manifest_sha256  {found['manifest_sha256']}")
    out.say()
    for file in found["files"]:
        out.say(f"  {file['name']:<36} {size(file['size']):>9}  {file['sha256']}")


def _scaled(buckets: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """A version's buckets; none where it holds the robot's own physics alone, which goes without saying."""
    return [] if [bucket["name"] for bucket in buckets] == ["canonical"] else buckets


_SOURCES_SHOWN = 5
_BARS = "▁▂▃▄▅▆▇█"


def _coverage(coverage: Mapping[str, Any] | None, weighting: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a version covers, a line a subject; nothing for one that was locked before there were such figures."""
    if coverage is None:
        return []
    tiers = sorted(coverage["tiers"], key=lambda held: Tier(held["tier"]).rank)
    seconds = "; ".join(
        f"{held['seconds']:.1f} s of {tier_name(held['tier'])} from {counted(held['sources'], 'source')}" for held in tiers
    )
    shown = [f"{source['name']} {source['seconds']:.1f} s" for source in coverage["sources"][:_SOURCES_SHOWN]]
    if len(coverage["sources"]) > _SOURCES_SHOWN:
        shown.append(f"and {len(coverage['sources']) - _SOURCES_SHOWN} more")
    stance, space = coverage["stance"], coverage["feature_space"]
    lines = [
        ("seconds", seconds),
        ("sources", ", ".join(shown)),
        *((name.replace("_", " "), _bars(coverage[name])) for name in ("forward_speed", "lateral_speed", "turning_rate")),
        (
            "stance",
            f"single {stance['single_share']:.0%}, double {stance['double_share']:.0%}, flight {stance['flight_share']:.0%}; "
            f"{stance['steps_per_second']:.1f} steps/s",
        ),
        (
            "feature space",
            f"{space['effective_dimensions']:.1f} effective dimensions of {space['varying_dimensions']} that vary; "
            f"{space['poses']['effective']:.0f} poses and {space['velocities']['effective']:.0f} velocities, effectively",
        ),
    ]
    if weighting is not None:
        least, greatest, share = weighting["least"], weighting["greatest"], weighting["effective_share"]
        lines.append(("weights", f"{least:.2f} to {greatest:.2f}; a weighted sample is worth {share:.0%} of the frames"))
    return lines


def _bars(histogram: Mapping[str, Any]) -> str:
    """A histogram on one line: where it begins, a bar a bin, where it ends."""
    seconds, first = histogram["seconds"], histogram["from"]
    most = max(seconds)
    bars = "".join(_BARS[round(bin / most * (len(_BARS) - 1))] if bin else " " for bin in seconds)
    end = first + histogram["bin"] * len(seconds)
    return f"{first:g} {bars} {end:g} {histogram['unit']}"


@app.command("list")
def list_datasets(url: Url = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """List the datasets that have a locked version."""
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        found = api.list_datasets()
    out.document(found)
    out.values(item["name"] for item in found)
    if found:
        rows = [(d["name"], d["latest"], d["num_versions"], _aliases(d["aliases"])) for d in found]
        out.table(("Dataset", "Latest", ">versions", "Aliases"), rows)
    out.say(
        "\nnext: ampref dataset show NAME" if found else "there is none yet\nnext: ampref dataset lock NAME VERSION --tier 0"
    )


def _aliases(aliases: dict[str, str]) -> str:
    return ", ".join(f"{alias} = {version}" for alias, version in sorted(aliases.items())) or "-"


@app.command("show")
def show(
    name: Name,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="A version or an alias; default: all of them.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a dataset's versions and aliases, or one version with its files and checks. NAME==VERSION works, too."""
    if version is None:
        for sign in ("==", "@"):
            name, _, version = name.partition(sign) if sign in name else (name, "", version)
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        if version is None:
            found = api.get_dataset(name)
        else:
            found = api.get_version(name, version)
            found["contents"] = contents(api.get_manifest(name, found["version"]))
    out.document(found)
    if version is not None:
        out.values([found["manifest_sha256"]])
        print_version(out, found)
        print_readiness(out, found["readiness"])
        _warn_of(out, found)
        return
    out.values(item["version"] for item in found["versions"])
    columns = ("Version", ">clips", ">frames", "Locked", "Robot", "State")
    rows = [
        (
            v["version"],
            v["num_clips"],
            v["num_frames"],
            v["locked_at"],
            v["robot"],
            f"yanked: {v['yank_reason']}" if v["yanked"] else "locked",
        )
        for v in found["versions"]
    ]
    out.table(columns, rows)
    out.say(f"\naliases: {_aliases(found['aliases'])}; latest = {found['latest'] or '-'}")
    out.say(f"next: ampref dataset show {name} VERSION, ampref pull {name}")


def print_readiness(out: Output, readiness: Mapping[str, Any] | None) -> None:
    """The training-readiness checklist: what its lock found, criterion by criterion."""
    if not readiness:
        return
    out.say(f"\nchecks of every clip: {_checks(readiness)}")
    if "groups" not in readiness:
        out.say("readiness: locked before there were readiness tests; ampref verify NAME==VERSION runs them")
        return
    rows = [
        (criterion["status"], f"{group['name']}: {criterion['name']}", criterion["evidence"])
        for group in readiness["groups"]
        for criterion in group["criteria"]
    ]
    out.say(f"ready for training: {'yes' if readiness['ready'] else 'no'}\n")
    out.table(("Status", "Criterion", "Evidence"), rows)
    for waiver in readiness["waivers"]:
        out.say(f"waived: test {waiver['test']}: {waiver['reason']}")


def _checks(report: Mapping[str, Any]) -> str:
    checks = report.get("checks")
    if not isinstance(checks, list):
        return "see --json"
    failed = [str(check.get("name")) for check in checks if not check.get("passed")]
    return f"{len(checks) - len(failed)} of {len(checks)} checks passed" + (f"; not: {', '.join(failed)}" if failed else "")


@app.command("diff")
def diff(
    name: Name,
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="A version or an alias.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="A version or an alias.")],
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell which clips came, went or changed from one version to another."""
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        found = api.diff_versions(name, before, after)
    out.document(found)
    rows = [("added", _taken(t), None, t["frames"]) for t in found["added"]]
    rows += [("removed", _taken(t), t["frames"], None) for t in found["removed"]]
    rows += [("changed", _taken(c["after"]), c["before"]["frames"], c["after"]["frames"]) for c in found["changed"]]
    out.values(f"{row[0]}\t{row[1]}" for row in rows)
    if rows:
        out.table(("What", "Clip", f">frames in {found['before']}", f">frames in {found['after']}"), rows)
    same = "the feature rows are the same" if found["same_features"] else "the feature rows differ"
    out.say(
        f"\n{name} {found['before']} to {found['after']}: {len(found['added'])} added, {len(found['removed'])} removed, "
        f"{len(found['changed'])} changed, {found['unchanged']} unchanged; {same}"
    )


def _taken(taken: Mapping[str, Any]) -> str:
    """A clip's name, and its bucket unless that is the robot's own physics."""
    return str(taken["name"]) if taken.get("bucket", "canonical") == "canonical" else f"{taken['name']} [{taken['bucket']}]"


@app.command("alias")
def alias_version(
    name: Name,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="For example production.")],
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="The exact version that it is to mean.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Forget the alias; the version stays.")] = False,
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Point an alias at a version, or forget it. NAME@ALIAS can then be pulled."""
    if delete == (version is not None):
        raise typer.BadParameter("give the version that the alias is to mean, or --delete", param_hint="VERSION")
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        if version is None:
            api.delete_alias(name, alias)
        else:
            api.set_alias(name, alias, version)
    out.document({"dataset": name, "alias": alias, "version": version})
    out.say(f"{name}@{alias} is forgotten" if version is None else f"{name}@{alias} now means {name}=={version}")


@app.command("yank")
def yank(
    name: Name,
    version: Version,
    reason: Annotated[str | None, typer.Option(help="Why nobody should start to use it; pulling it shows this.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the yank back.")] = False,
    url: Url = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Warn everybody off a version. It stays readable by its exact name, and latest passes it by."""
    if undo == (reason is not None):
        raise typer.BadParameter("say why nobody should use it, or --undo", param_hint="--reason")
    out = Output(as_json=as_json, quiet=quiet)
    with connect(url, out) as api:
        found = api.unyank_version(name, version) if reason is None else api.yank_version(name, version, reason)
    out.document(found)
    out.say(f"{name}=={version} is {'yanked: ' + str(found['yank_reason']) if found['yanked'] else 'no longer yanked'}")
