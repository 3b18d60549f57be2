"""`ampref verify`: the ten tests on motions, on a locked version, or on all there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from amp_core import motions as bundled
from amp_core.cli.options import Fps, JsonOut, Profile, QuatOrder, Quiet, Url, mode_option
from amp_core.cli.output import Output
from amp_core.cli.reading import reading_options
from amp_core.cli.remote import connect
from amp_core.cli.targets import check_file
from amp_core.cpus import usable_cpus
from amp_core.readiness import TEST_IDS


def verify(
    subjects: Annotated[
        list[str] | None,
        Argument(metavar="MOTION | NAME==VERSION", help="Motion files (.pkl, .npz, .json, .csv), or one locked version."),
    ] = None,
    all_subjects: Annotated[
        bool, Option("--all", help="The bundled motions; with --url or AMPREF_URL, every version of that service.")
    ] = False,
    robot: Annotated[
        str | None,
        Option(help="A bundled robot's name, or a path to a robot.yaml. Default: wildrobot, or a version's own."),
    ] = None,
    mode: Annotated[
        str | None, mode_option(help="Score motions in this mode: auto (default), rollout, tracked, recorded or another.")
    ] = None,
    profile: Profile = None,
    seed: Annotated[int | None, Option(min=0, help="Of the recipe, and of what the tests draw. Default: 0.")] = None,
    only: Annotated[list[str] | None, Option(metavar="ID", help="Run this test alone: 1A … 7, smoke; repeatable.")] = None,
    frames: Annotated[
        int | None, Option(min=1, help="Simulate at most so many frames again in each test; default: 60000, or fewer.")
    ] = None,
    iterations: Annotated[int | None, Option(min=1, help="Iterations of the micro-training; default: 100.")] = None,
    json_out: JsonOut = None,
    html_out: Annotated[Path | None, Option("--html", metavar="OUT", help="Write the report as one page here.")] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    threads: Annotated[int | None, Option(min=1, help="Simulation threads; no outcome depends on it.")] = None,
    url: Url = None,
    quiet: Quiet = False,
) -> None:
    """Run the ten parity and readiness tests, and say whether this is fit to train on.

    Motions are scored first, then tested as one set. A locked version is fetched and tested as it was locked.

    Exits with 0 when no test failed, with 1 when one did or a file was refused (the others are still tested), with 2 for
    wrong usage.
    """
    for test in only or ():
        if test not in TEST_IDS:
            raise BadParameter(f"{test!r} is no test; choose one of {', '.join(TEST_IDS)}", param_hint="--only")
    # A file that exists is a file, whatever its name.
    versions = [subject for subject in subjects or () if ("==" in subject or "@" in subject) and not Path(subject).exists()]
    motions = [Path(subject) for subject in subjects or () if subject not in versions]
    is_remote = bool(versions) or (all_subjects and bool(url or os.environ.get("AMPREF_URL")))
    kinds = bool(versions) + bool(motions) + all_subjects
    if kinds != 1:
        problem = "these do not go together" if kinds else "nothing is named"
        text = f"{problem}: give motion files, or NAME==VERSION, or --all"
        raise BadParameter(text, param_hint="MOTION | NAME==VERSION")
    if len(versions) > 1:
        raise BadParameter("one version at a time, or --all", param_hint="NAME==VERSION")
    if is_remote:
        for option, value in {"--mode": mode, "--profile": profile, "--fps": fps, "--quat-order": quat_order}.items():
            if value is not None:
                raise BadParameter("it is for motions; a version is as it was locked", param_hint=option)
    elif url is not None:
        raise BadParameter("it is for NAME==VERSION and --all; motions need no service", param_hint="--url")
    out = Output(json_out, quiet=quiet)
    if html_out:
        check_file(html_out)
    from amp_core.cli.tester import Tester  # noqa: PLC0415 - --help needs no MuJoCo

    tester = Tester(out, only, threads or usable_cpus(), seed or 0, frames=frames, iterations=iterations)
    if is_remote:
        with connect(url, out) as api:
            if versions:
                tester.test_version(api, versions[0], robot)
            else:
                tester.test_all_versions(api, robot)
    elif all_subjects:
        tester.test_motions(bundled.bundled_motions(), bundled.reading_options, robot, mode, profile)
    else:
        tester.test_motions(motions, reading_options(motions, fps, quat_order, out), robot, mode, profile)
    tester.print_outcome(html_out)
