"""`ampref dataset`: lock versions, look at them, point aliases at them, warn people off them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option, Typer

from amp_core.cli.group import SummaryGroup
from amp_core.cli.options import (
    Fps,
    Json,
    QuatOrder,
    Quiet,
    TakenProfile,
    Threads,
    Timeout,
    Url,
    refuse_usage,
    rollout_mode_option,
)
from amp_core.cli.output import Cell, Output
from amp_core.cli.remote import connect, note_unfinished, wait_for_job
from amp_core.cli.targets import made_folder
from amp_core.cli.text import counted, size
from amp_core.cli.version_text import print_readiness, print_version, version_state
from amp_core.cpus import usable_cpus
from amp_core.dataset.names import check_alias, check_dataset_name, check_version
from amp_core.errors import AmprefError, InputRefused
from amp_core.readiness import check_waivers
from amp_core.recipe import PhysicsScale

_SUMMARY = "Lock, list, show and compare dataset versions."
dataset = Typer(cls=SummaryGroup, help=_SUMMARY, no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, Argument(metavar="NAME", callback=check_dataset_name, help="The dataset's name, for example walk.")]
Version = Annotated[str, Argument(metavar="VERSION", callback=check_version, help="An exact version, for example 0.11.0.")]


@dataset.command("lock")
def lock(
    name: Name,
    version: Version,
    tier: Annotated[
        list[int] | None, Option(min=0, max=1, help="Take this tier, 0 or 1; may be repeated; default 0 alone.")
    ] = None,
    robot: Annotated[str | None, Option(help="For this robot; default: the dataset's, or that of the clips that fit.")] = None,
    mode: Annotated[str | None, rollout_mode_option(help="Take each clip's best rollout in this mode.")] = None,
    recipe: Annotated[str | None, Option(metavar="DIGEST", help="Take the rollouts of this recipe, alone.")] = None,
    profile: TakenProfile = None,
    tag: Annotated[list[str] | None, Option(help="Clips with this tag; may be repeated, all must be there.")] = None,
    clip: Annotated[list[str] | None, Option(help="This clip, by id or name; may be repeated; default all.")] = None,
    segments: Annotated[
        bool, Option("--segments", help="Also take the passing windows of clips that fail as a whole.")
    ] = False,
    bucket: Annotated[
        list[str] | None,
        Option(
            help="Take each clip in these physics: canonical, factors such as friction=0.7,mass=1.1, or all; may be repeated."
        ),
    ] = None,
    waive: Annotated[
        list[str] | None,
        Option(
            metavar='ID="REASON"', help="Lock although this test fails, and keep the reason with the version; may be repeated."
        ),
    ] = None,
    alias: Annotated[list[str] | None, Option(help="Point this alias at the version afterwards; may be repeated.")] = None,
    wait: Annotated[bool, Option("--wait/--no-wait", help="Show progress until it is locked.")] = True,
    url: Url = None,
    timeout: Timeout = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Gather the clips that a query selects, test them and lock them as a version that never changes.

    The ten tests of ampref verify run before the lock. One that fails stops it, unless it is waived by name with a reason.
    """
    with refuse_usage("--waive"):
        parts = [text.partition("=") for text in waive or ()]
        waivers = list(check_waivers({"test": test.strip(), "reason": reason} for test, _, reason in parts))
    if alias and not wait:
        raise BadParameter("an alias needs the locked version; drop --no-wait", param_hint="--alias")
    # The service would refuse a bad alias, too, but only after the version is locked.
    with refuse_usage("--alias"):
        for text in alias or ():
            check_alias(text)
    if "latest" in (alias or ()):
        raise BadParameter("latest is computed and cannot be set; choose another alias", param_hint="--alias")
    buckets: str | list[dict[str, Any]] = "all"
    if "all" not in (bucket or ()):
        with refuse_usage("--bucket"):
            buckets = [asdict(scale) for scale in dict.fromkeys(map(PhysicsScale.parse, bucket or ()))]
    elif len(set(bucket or ())) > 1:
        raise BadParameter("all are all; drop the others", param_hint="--bucket")
    optional = {
        "robot": robot,
        "mode": mode,
        "recipe": recipe,
        "gate_profile": profile,
        "tags": tag,
        "clips": clip,
        "buckets": buckets,
    }
    select = {"tier": tier or [0], "segments": segments} | {key: value for key, value in optional.items() if value}
    spec = f"{name}=={version}"
    out = Output(json_out, quiet=quiet)
    with connect(url, out, patient=True) as api:
        locking = api.lock_version(name, version, select=select, waivers=waivers or None)
        job = locking["job"]
        if n_pending := locking["pending_clips"]:
            fit = "clip that fits is" if n_pending == 1 else "clips that fit are"
            names = ", ".join(locking.get("pending_names", ()))
            more = ", …" if n_pending > len(locking.get("pending_names", ())) else ""
            names = f" ({names}{more})" if names else ""
            out.warn(f"{n_pending} {fit} still being scored{names}; what is not done when the lock begins is not in it")
        if count := locking.get("other_profile_clips"):
            text = f"{counted(count, 'clip')} of these tiers by another gate profile alone: not in it, see --profile"
            out.note(f"note: {text}")
        if not wait:
            out.print_result(locking, [job["id"]])
            out.print(f"{spec} is being locked\nnext: ampref job {job['id']} --wait")
            return
        with note_unfinished(out, lambda: [job["id"]]), out.progress(f"locking {spec}", total=1) as progress:
            wait_for_job(api, job, progress, label=spec, timeout=timeout)
        for text in alias or ():
            try:
                api.set_alias(name, text, version)
            except AmprefError as error:
                problem = f"{spec} is locked, but the alias {text!r} is not set: {error.what}"
                remedy = f"Set it with: ampref dataset alias {name} {text} {version}"
                out.refuse(type(error)(problem, key=error.key, expected=error.expected, remedy=remedy))
        document = print_version(out, api, name, version)
    out.exit()
    is_ready = (document["readiness"] or {}).get("ready", True)
    step = "next, on a training node" if is_ready else "it is not ready for training, see above; to use it all the same"
    out.print(f"\n{step}: ampref pull {spec}")


@dataset.command("build")
def build(
    folder: Annotated[Path, Argument(metavar="DIR", help="The folder of exports: ampref score MOTION... --export DIR.")],
    target: Annotated[Path, Option("--out", metavar="DIR", help="Write the version's files into this folder.")],
    tier: Annotated[
        list[int] | None, Option(min=0, max=1, help="Take this tier, 0 or 1; may be repeated; default 0 alone.")
    ] = None,
    name: Annotated[str | None, Option("--name", help="The dataset's name; default: the folder's.")] = None,
    version: Annotated[str, Option("--version", help="The version.")] = "1.0.0",
    robot: Annotated[str | None, Option(help="A path to a robot.yaml, where the exports' robot is not bundled.")] = None,
    profile: TakenProfile = None,
    segments: Annotated[
        bool, Option("--segments", help="Also take the passing windows of clips that fail as a whole.")
    ] = False,
    motions: Annotated[
        list[Path] | None,
        Option(
            metavar="PATH",
            help="The exports' motions (files, folders), without which it is not ready for training; repeatable. Default: DIR.",
        ),
    ] = None,
    waive: Annotated[
        list[str] | None,
        Option(metavar='ID="REASON"', help="Write it although this test fails, and keep the reason; may be repeated."),
    ] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    threads: Threads = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Make a version's files from exports, without a service: the same bytes as a service's lock of the same rollouts.

    The ten tests of ampref verify run first. One that fails stops it, unless it is waived by name with a reason.
    """
    with refuse_usage("--waive"):
        parts = [text.partition("=") for text in waive or ()]
        waivers = list(check_waivers({"test": test.strip(), "reason": reason} for test, _, reason in parts))
    out = Output(json_out, quiet=quiet)
    if not folder.is_dir():
        raise InputRefused("there is no such folder", file=str(folder), expected="a folder of exports")
    from amp_core.cli.build import Selection, build_version, read_exports  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.reference import read_meta  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - --help needs no MuJoCo

    check_version(version)
    dataset_name = check_dataset_name(name or folder.resolve().name.lower())
    robots = set()
    for path in () if robot else sorted(folder.glob("*.npz")):
        with suppress(AmprefError):
            robots.add(str(read_meta(path)["robot"]))
    if len(robots) > 1:
        problem, remedy = (
            f"the exports are of {', '.join(sorted(robots))}",
            "Put those of each robot into a folder of their own",
        )
        raise InputRefused(problem, file=str(folder), expected="one robot in a version", remedy=remedy)
    loaded_robot = Robot.load(robot or next(iter(robots), "wildrobot"))
    selection = Selection(loaded_robot.name, tuple(dict.fromkeys(tier or [0])), segments, profile)
    with made_folder(target), out.progress(f"building {dataset_name}=={version}", total=1.0) as progress:
        bundle, report = build_version(
            list(read_exports(folder, loaded_robot, out)), loaded_robot, selection, target, out,
            name=dataset_name, version=version, waivers=waivers, folders=motions or [folder],
            reading=lambda path: {"fps": fps, "quat_order": quat_order} if path.suffix.lower() == ".csv" else {},
            nthread=threads or usable_cpus(), progress=progress.update,
        )  # fmt: skip
    document = {
        "dataset": dataset_name,
        "version": version,
        "ready": report["ready"],
        "num_clips": bundle.num_clips,
        "num_frames": bundle.num_frames,
        "dataset_hash": bundle.dataset_hash,
        "manifest_sha256": bundle.manifest.sha256,
        "duplicates": list(bundle.duplicates),
        "files": [file.to_dict() for file in bundle.files],
        "checks": report["checks"],
        "groups": report["groups"],
        "waivers": report["waivers"],
    }
    out.print_result(document, [bundle.manifest.sha256])
    out.print(f"{dataset_name}=={version}: {counted(bundle.num_clips, 'clip')}, {bundle.num_frames} frames")
    for file in bundle.files:
        out.print(f"  {file.path}  {file.sha256}")
    out.print(f"  dataset_hash  {bundle.dataset_hash}")
    print_readiness(out, document)
    features = next(file.path for file in bundle.files if file.path.suffix == ".npz")
    out.print(f"\nnext: numpy.load({str(features)!r})['features']; the manifest beside it says what its rows and columns are")
    out.exit()


@dataset.command("list")
def list_datasets(url: Url = None, json_out: Json = None, quiet: Quiet = False) -> None:
    """List the datasets that have a locked version."""
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        datasets = api.list_datasets()
    out.print_result(datasets, (entry["name"] for entry in datasets))
    if not datasets:
        out.print("there is none yet\nnext: ampref dataset lock NAME VERSION --tier 0")
        return
    columns: dict[str, Cell] = {"Dataset": "name", "Latest": "latest", ">versions": "num_versions", "Aliases": _format_aliases}
    out.print_table(columns, datasets)
    out.print("\nnext: ampref dataset show NAME")


def _format_aliases(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{alias} = {version}" for alias, version in sorted(entry["aliases"].items())) or "-"


@dataset.command("show")
def show(
    name: Annotated[str, Argument(metavar="NAME", help="The dataset's name, for example walk.")],
    version: Annotated[str | None, Argument(metavar="VERSION", help="A version or an alias; default: all of them.")] = None,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show a dataset's versions and aliases, or one version with its files and checks. NAME==VERSION works, too."""
    if version is None:
        for sign in ("==", "@"):
            name, _, version = name.partition(sign) if sign in name else (name, "", version)
    check_dataset_name(name)
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        if version is not None:
            print_version(out, api, name, version)
            return
        entry = api.get_dataset(name)
    out.print_result(entry, (row["version"] for row in entry["versions"]))
    columns: dict[str, Cell] = {
        **{"Version": "version", ">clips": "num_clips", ">frames": "num_frames", "Locked": "locked_at", "Robot": "robot"},
        "State": version_state,
    }
    out.print_table(columns, entry["versions"])
    out.print(f"\naliases: {_format_aliases(entry)}; latest = {entry['latest'] or '-'}")
    out.print(f"next: ampref dataset show {name} VERSION, ampref pull {name}")


@dataset.command("diff")
def diff(
    name: Name,
    old: Annotated[str, Argument(metavar="BEFORE", help="A version or an alias.")],
    new: Annotated[str, Argument(metavar="AFTER", help="A version or an alias.")],
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Tell which clips came, went or changed from one version to another."""
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        changes = api.diff_versions(name, old, new)
    rows = [("added", _member_name(member), None, member["frames"]) for member in changes["added"]]
    rows += [("removed", _member_name(member), member["frames"], None) for member in changes["removed"]]
    for pair in changes["changed"]:
        rows.append(("changed", _member_name(pair["after"]), pair["before"]["frames"], pair["after"]["frames"]))
    out.print_result(changes, (f"{row[0]}\t{row[1]}" for row in rows))
    if rows:
        out.print_table(("What", "Clip", f">frames in {changes['before']}", f">frames in {changes['after']}"), rows)
    features = "the feature rows are the same" if changes["same_features"] else "the feature rows differ"
    counts = ", ".join(f"{len(changes[kind])} {kind}" for kind in ("added", "removed", "changed"))
    out.print(f"\n{name} {changes['before']} to {changes['after']}: {counts}, {changes['unchanged']} unchanged; {features}")


def _member_name(member: Mapping[str, Any]) -> str:
    """A clip's name, and its bucket unless that is the robot's own physics."""
    bucket = member.get("bucket", "canonical")
    return str(member["name"]) if bucket == "canonical" else f"{member['name']} [{bucket}]"


@dataset.command("alias")
def alias_version(
    name: Name,
    alias: Annotated[str, Argument(metavar="ALIAS", help="For example production.")],
    version: Annotated[str | None, Argument(metavar="VERSION", help="The exact version that it is to mean.")] = None,
    delete: Annotated[bool, Option("--delete", help="Forget the alias; the version stays.")] = False,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Point an alias at a version, or forget it. NAME@ALIAS can then be pulled."""
    if delete == (version is not None):
        raise BadParameter("give the version that the alias is to mean, or --delete", param_hint="VERSION")
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        if version is None:
            api.delete_alias(name, alias)
        else:
            api.set_alias(name, alias, version)
    out.print_result({"dataset": name, "alias": alias, "version": version})
    out.print(f"{name}@{alias} is forgotten" if version is None else f"{name}@{alias} now means {name}=={version}")


@dataset.command("yank")
def yank(
    name: Name,
    version: Version,
    reason: Annotated[str | None, Option(help="Why nobody should start to use it; pulling it shows this.")] = None,
    undo: Annotated[bool, Option("--undo", help="Take the yank back.")] = False,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Warn everybody off a version. It stays readable by its exact name, and latest passes it by."""
    if undo == (reason is not None):
        raise BadParameter("say why nobody should use it, or --undo", param_hint="--reason")
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        answer = api.unyank_version(name, version) if reason is None else api.yank_version(name, version, reason)
    out.print_result(answer)
    out.print(f"{name}=={version} is {version_state(answer) if answer['yanked'] else 'no longer yanked'}")


@dataset.command("archive")
def archive(
    name: Name,
    version: Version,
    reason: Annotated[str | None, Option(help="Why its features are not needed any more; their address shows it.")] = None,
    yes: Annotated[bool, Option("--yes", help="Do it; without, show what would go.")] = False,
    undo: Annotated[bool, Option("--undo", help="Take it back, once the service has the features again.")] = False,
    url: Url = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Give up the features of a version; its manifest, verification and members stay, and its name is never locked again.

    Clips of it that no other version holds may be deleted afterwards.
    """
    if undo == (reason is not None):
        raise BadParameter("say why it is not needed, or --undo", param_hint="--reason")
    out = Output(json_out, quiet=quiet)
    with connect(url, out) as api:
        row = {} if reason is None else api.get_version(name, version)
        if reason is None:
            answer = api.unarchive_version(name, version)
        else:
            answer = api.archive_version(name, version, reason, manifest_sha256=row["manifest_sha256"], dry_run=not yes)
    out.print_result(answer)
    if yes or undo:
        out.print(f"{name}=={version} is {version_state(answer) if answer['archived'] else 'no longer archived'}")
        return
    for file in row["files"]:
        verb = "stays" if file["name"].endswith(".json") else "goes"
        out.print(f"  {verb:<6} {file['name']:<36} {size(file['size']):>9}")
    out.print(
        f"{counted(answer['free_clips'], 'clip')} of {row['num_clips']}, which no other version holds, may be deleted "
        f"afterwards; ampref purge takes {answer['purgeable_clips']} of them once old enough"
    )
    out.print("nothing was done; next: the same with --yes")
