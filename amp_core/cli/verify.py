"""`ampref verify`: the ten tests on motions, on a locked version, or on all there are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from amp_core import motions as bundled
from amp_core import verify as readiness
from amp_core.cli.batch import process_files, score_run
from amp_core.cli.options import Fps, JsonOut, QuatOrder, Quiet, Url
from amp_core.cli.output import Output
from amp_core.cli.reading import ReadOptions, reading_options
from amp_core.cli.recipes import build_recipe
from amp_core.cli.remote import connect
from amp_core.cli.targets import check_file, write_target
from amp_core.cli.text import counted
from amp_core.cli.versions import open_version
from amp_core.client import ApiClient
from amp_core.cpus import usable_cpus
from amp_core.errors import AmprefError, InputRefused
from amp_core.formats import Motion
from amp_core.readiness import TEST_IDS
from amp_core.robot import Robot
from amp_core.scoring import Score
from amp_core.verify import Subject, checklist
from amp_core.verify.html import page
from amp_core.verify.report import worst

DEFAULT_ROBOT = "wildrobot"
NOT_ASKED = "not asked for"
"""The reason of a test that `--only` leaves out."""
STATUS_WORDS = {"FAIL": "failed", "WARN": "with a warning", "SKIP": "not run", "PASS": "passed"}


def verify(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(metavar="MOTION | NAME==VERSION", help="Motion files (.pkl, .npz, .json, .csv), or one locked version."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The bundled motions; with --url or AMPREF_URL, every version of that service.")
    ] = False,
    robot: Annotated[
        str | None,
        typer.Option(help="A bundled robot's name, or a path to a robot.yaml. Default: wildrobot, or a version's own."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="Score motions in this mode: auto (default), rollout, tracked or teacher_forced.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the recipe, and of what the tests draw. Default: 0.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Run this test alone: 1A … 7, smoke; repeatable.")
    ] = None,
    json_out: JsonOut = None,
    html_out: Annotated[Path | None, typer.Option("--html", metavar="OUT", help="Write the report as one page here.")] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Simulation threads; no outcome depends on it.")] = None,
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
            raise typer.BadParameter(f"{test!r} is no test; choose one of {', '.join(TEST_IDS)}", param_hint="--only")
    # A file that exists is a file, whatever its name.
    versions = [subject for subject in subjects or () if ("==" in subject or "@" in subject) and not Path(subject).exists()]
    motions = [Path(subject) for subject in subjects or () if subject not in versions]
    is_remote = bool(versions) or (everything and bool(url or os.environ.get("AMPREF_URL")))
    kinds = bool(versions) + bool(motions) + everything
    if kinds != 1:
        problem = "nothing is named" if kinds == 0 else "these do not go together"
        hint = "MOTION | NAME==VERSION"
        raise typer.BadParameter(f"{problem}: give motion files, or NAME==VERSION, or --all", param_hint=hint)
    if len(versions) > 1:
        raise typer.BadParameter("one version at a time, or --all", param_hint="NAME==VERSION")
    if is_remote:
        for option, value in {"--mode": mode, "--fps": fps, "--quat-order": quat_order}.items():
            if value is not None:
                raise typer.BadParameter("it is for motions; a version is as it was locked", param_hint=option)
    elif url is not None:
        raise typer.BadParameter("it is for NAME==VERSION and --all; motions need no service", param_hint="--url")
    out = Output(json_out, quiet=quiet)
    if html_out:
        check_file(html_out)
    tester = _Tester(out, only, threads or usable_cpus(), seed or 0)
    if is_remote:
        with connect(url, out) as api:
            if versions:
                tester.test_version(api, versions[0], robot)
            else:
                tester.test_all_versions(api, robot)
    elif everything:
        tester.test_motions(bundled.bundled_motions(), bundled.reading_options, robot, mode)
    else:
        tester.test_motions(motions, reading_options(motions, fps, quat_order, out), robot, mode)
    _print_outcome(out, tester.documents, html_out)


class _Tester:
    """Runs the tests on one subject after the other.

    Attributes:
      documents: the JSON objects of the subjects that were tested.
    """

    def __init__(self, out: Output, only: Sequence[str] | None, nthread: int, seed: int) -> None:
        self._out, self._only, self._nthread, self._seed = out, only, nthread, seed
        self.documents: list[dict[str, Any]] = []

    def test_motions(self, paths: Sequence[Path], options: ReadOptions, robot_name: str | None, mode: str | None) -> None:
        """Score motions, and test them as one set."""
        recipe = build_recipe(None, mode, self._seed)
        robot = Robot.load(robot_name or DEFAULT_ROBOT)
        scores: list[Score] = []
        motions: list[Motion] = []
        with self._out.progress("scoring", total=len(paths)) as progress:
            runs = [score_run(robot, recipe, self._nthread)]
            for file in process_files(paths, options, robot, recipe, self._nthread, runs, progress):
                if file.refusal is not None:
                    self._out.refuse(file.refusal)
                elif file.motion is not None and file.results[0] is not None:
                    scores.append(file.results[0])
                    motions.append(file.motion)
        if scores:
            self._test(Subject.of_scores(scores, motions, robot), counted(len(scores), "motion"))

    def test_all_versions(self, api: ApiClient, robot: str | None) -> None:
        """Test every version that is not yanked, the oldest of each dataset first; a refused one costs only itself."""
        specs = []
        for dataset in api.list_datasets():
            versions = api.get_dataset(dataset["name"])["versions"]
            specs += [f"{dataset['name']}=={version['version']}" for version in reversed(versions) if not version["yanked"]]
        if not specs:
            raise InputRefused("the service has no version", remedy="Lock one: ampref dataset lock NAME VERSION")
        for spec in specs:
            self._out.print(f"{'' if spec == specs[0] else chr(10)}{spec}")
            try:
                self.test_version(api, spec, robot)
            except AmprefError as error:
                self._out.refuse(error)

    def test_version(self, api: ApiClient, spec: str, robot: str | None) -> None:
        """Fetch a locked version and test it."""
        with ExitStack() as stack:
            with self._out.progress(f"fetching {spec}", total=1.0) as progress:

                def report(share: float, text: str) -> None:
                    progress.update(share, description=f"fetching {spec}: {text}")

                version = stack.enter_context(open_version(api, spec, robot, report))
            self._test(version.subject, spec, version.waivers, version.locked)

    def _test(
        self, subject: Subject, label: str, waivers: Sequence[Mapping[str, Any]] = (), locked: Mapping[str, str] | None = None
    ) -> None:
        """Run the tests and print a line for each, and below them why those that did not pass did not."""
        with self._out.progress(f"testing {label}", total=1.0) as progress:
            verification = readiness.verify(
                subject,
                only=self._only,
                nthread=self._nthread,
                seed=self._seed,
                progress=lambda share, text: progress.update(share, description=f"testing {label}: {text}"),
            )
        document = checklist.document(verification, waivers, locked)
        self.documents.append(document)
        # Who asked for some tests alone knows that the others were not run.
        tests = [test for test in document["tests"] if test["reason"] != NOT_ASKED]
        rows = []
        for test in tests:
            row = checklist.decisive_row(test["rows"])
            value = "-" if row is None else checklist.row_text({**row, "where": "", "note": ""})
            rows.append((test["status"], test["name"], value, f"{test['wall_sec']:.1f}"))
        self._out.print_table(("Status", "Test", "Nearest to its threshold", ">s"), rows)
        reasons = [f"{test['id']} {test['status']}: {test['reason']}" for test in tests if test["reason"]]
        for line in ("", *reasons) if reasons else ():
            self._out.print(line)
        for waiver in waivers:
            self._out.print(f"{waiver['test']} was waived at the lock: {waiver['reason']}")


def _print_outcome(out: Output, documents: Sequence[dict[str, Any]], html_out: Path | None) -> None:
    """Print and write the report; end with 1 if a test failed or something was refused."""
    document = _combine(documents) | {"refused": [error.to_dict() for error in out.refused]}
    out.print_json(document)
    if html_out and documents:
        write_target(html_out, page(*documents, groups=documents[0]["groups"]).encode())
    out.print_values(
        (f"{_subject_name(subject)}\t" if len(documents) > 1 else "") + f"{test['id']}\t{test['status']}"
        for subject in documents
        for test in subject["tests"]
    )
    counts = Counter(test["status"] for test in document["tests"])
    summary = ", ".join(f"{counts[status]} {word}" for status, word in STATUS_WORDS.items() if counts[status])
    refused = f"; {len(out.refused)} refused" if out.refused else ""
    out.print(f"\n{document['status']}: {summary or 'nothing was tested'}{refused}")
    if out.file:
        out.print(f"report: {out.file}")
    if html_out and documents:
        out.print(f"page: {html_out}")
    is_locked = any("dataset" in each["subject"] for each in documents)
    step = "ampref submit MOTION... --wait, then ampref dataset lock NAME VERSION runs the same tests before the lock"
    if document["status"] == "FAIL":
        step = "do not train on it" if is_locked else "mend what the reasons name"
        step += "; docs/verification.md says for each test what to do"
    elif not documents:
        step = "ampref score MOTION shows what is wrong with a file"
    elif is_locked:
        step = f"ampref pull {_subject_name(documents[0])}"
    out.print(f"next: {step}")
    out.exit(failed=bool(counts["FAIL"]))


def _combine(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON document: of several subjects every test names its own, and `subjects` has the rest of each."""
    if len(documents) == 1:
        return documents[0]
    return {
        "status": worst([document["status"] for document in documents]),
        "ready": bool(documents) and all(document["ready"] for document in documents),
        "tests": [{"subject": _subject_name(document), **test} for document in documents for test in document["tests"]],
        "subjects": [{key: value for key, value in document.items() if key != "tests"} for document in documents],
    }


def _subject_name(document: Mapping[str, Any]) -> str:
    subject = document["subject"]
    return f"{subject['dataset']}=={subject['version']}" if "dataset" in subject else str(subject.get("robot"))
