"""`ampref verify`: the ten tests on motions, on a locked version, or on all there are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Output, Quiet, dumps
from amp_core.cli.reading import reading_options
from amp_core.cli.remote import Url, connect
from amp_core.cli.score import (
    BATCH_PER_THREAD,
    PLANNED_PER_THREAD,
    _batches,
    _check_targets,
    _read,
    _recipe,
    _score_all,
    _write,
)
from amp_core.cpus import usable_cpus
from amp_core.errors import AmprefError, InputRefused
from amp_core.readiness import TEST_IDS

if TYPE_CHECKING:
    from amp_core.client import ApiClient
    from amp_core.formats import Motion
    from amp_core.score import Score
    from amp_core.verify import Subject

DEFAULT_ROBOT = "wildrobot"
NOT_ASKED = "not asked for"
"""The reason of a test that `--only` leaves out."""


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
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the whole report here; - is stdout.")
    ] = None,
    html_out: Annotated[Path | None, typer.Option("--html", metavar="OUT", help="Write the report as one page here.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second, for .csv files and others that do not hold it.")] = None,
    quat_order: Annotated[str | None, typer.Option(help="Quaternion order, wxyz or xyzw; must be given for .csv.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Simulation threads; no outcome depends on it.")] = None,
    url: Url = None,
    quiet: Quiet = False,
) -> None:
    """Run the ten parity and readiness tests, and say whether this is fit to train on.

    Motions are scored first, then tested as one set. A locked version is fetched and tested as it was locked.

    Exits with 0 when no test failed, with 1 when one did or a file was refused (the others are still tested), with 2 for
    wrong usage.
    """
    if quat_order not in (None, "wxyz", "xyzw"):
        raise typer.BadParameter("choose wxyz or xyzw", param_hint="--quat-order")
    for test in only or ():
        if test not in TEST_IDS:
            raise typer.BadParameter(f"{test!r} is no test; choose one of {', '.join(TEST_IDS)}", param_hint="--only")
    versions, motions = _told_apart(subjects or [])
    remote = bool(versions) or (everything and bool(url or os.environ.get("AMPREF_URL")))
    _check_usage(versions, motions, everything, remote, {"--mode": mode, "--fps": fps, "--quat-order": quat_order}, url)
    out = Output(as_json=str(json_out) == "-", quiet=quiet)
    for target in (json_out, html_out):
        _check_targets(target, None)
    nthread = threads or usable_cpus()
    run = _Run(out, only, nthread, seed or 0)
    if remote:
        with connect(url, out) as api:
            _versions(run, api, versions or _every_version(api), robot, alone=bool(versions))
    else:
        _motions(run, motions, everything, robot or DEFAULT_ROBOT, mode, fps, quat_order)
    _tell(out, run, json_out, html_out)
    if run.refused or run.failed:
        raise typer.Exit(1)


class _Run:
    """What was tested so far, and how tests are run."""

    def __init__(self, out: Output, only: Sequence[str] | None, nthread: int, seed: int) -> None:
        self.out, self.only, self.nthread, self.seed = out, only, nthread, seed
        self.documents: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []

    @property
    def failed(self) -> bool:
        """Whether a test failed."""
        return any(test["status"] == "FAIL" for document in self.documents for test in document["tests"])

    def refuse(self, error: AmprefError) -> None:
        """Tell of what cannot be tested, and go on."""
        self.out.error(error)
        self.refused.append(error.to_dict())

    def test(
        self, subject: Subject, label: str, waivers: Sequence[Mapping[str, Any]] = (), locked: Mapping[str, str] | None = None
    ) -> None:
        """Run the tests on a subject, and tell what they found."""
        from amp_core.verify import verify
        from amp_core.verify.checklist import document

        with self.out.progress(f"testing {label}", total=1.0) as progress:
            found = verify(
                subject,
                only=self.only,
                nthread=self.nthread,
                seed=self.seed,
                progress=lambda share, text: progress.update(share, description=f"testing {label}: {text}"),
            )
        made = document(found, waivers, locked)
        self.documents.append(made)
        show_tests(self.out, made)
        for waiver in waivers:
            self.out.say(f"{waiver['test']} was waived at the lock: {waiver['reason']}")


def _told_apart(subjects: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Versions and files among what was named. A file that is there is a file, whatever it is called."""
    versions = [one for one in subjects if ("==" in one or "@" in one) and not Path(one).exists()]
    return versions, [Path(one) for one in subjects if one not in versions]


def _check_usage(
    versions: Sequence[str],
    motions: Sequence[Path],
    everything: bool,
    remote: bool,
    of_motions: Mapping[str, Any],
    url: str | None,
) -> None:
    kinds = bool(versions) + bool(motions) + everything
    if kinds != 1:
        what = "nothing is named" if kinds == 0 else "these do not go together"
        raise typer.BadParameter(f"{what}: give motion files, or NAME==VERSION, or --all", param_hint="MOTION | NAME==VERSION")
    if len(versions) > 1:
        raise typer.BadParameter("one version at a time, or --all", param_hint="NAME==VERSION")
    if remote:
        for option, value in of_motions.items():
            if value is not None:
                raise typer.BadParameter("it is for motions; a version is as it was locked", param_hint=option)
    elif url is not None:
        raise typer.BadParameter("it is for NAME==VERSION and --all; motions need no service", param_hint="--url")


# --- motions ---------------------------------------------------------------------------------------------------------------


def _motions(
    run: _Run,
    paths: Sequence[Path],
    everything: bool,
    robot_name: str,
    mode: str | None,
    fps: float | None,
    quat_order: str | None,
) -> None:
    from amp_core import motions as bundled
    from amp_core.robot import Robot
    from amp_core.verify import Subject

    options: Callable[[Path], dict[str, Any]] = bundled.reading_options
    if everything:
        paths = bundled.bundled_motions()
    else:
        options = reading_options(paths, fps, quat_order, run.out)
    recipe = _recipe(None, mode, run.seed)
    robot = Robot.load(robot_name)
    scores: list[Score] = []
    read: list[Motion] = []
    with run.out.progress("scoring", total=len(paths)) as progress:
        per_thread = BATCH_PER_THREAD if recipe.planner is None else PLANNED_PER_THREAD
        readable = _read(list(paths), options, robot, recipe)
        for batch in _batches(readable, per_thread * run.nthread):
            good = [(index, motion) for index, motion in batch if not isinstance(motion, AmprefError)]
            outcomes: dict[int, Score | AmprefError] = {
                index: motion for index, motion in batch if isinstance(motion, AmprefError)
            }
            outcomes.update(_score_all(good, robot, recipe, run.nthread, progress, list(paths)))
            source = dict(good)
            for index, outcome in sorted(outcomes.items()):
                if isinstance(outcome, AmprefError):
                    run.refuse(outcome)
                else:
                    scores.append(outcome)
                    read.append(source[index])
            progress.update(batch[-1][0] + 1)
    if scores:
        subject = Subject.of_scores(scores, read, robot)
        run.test(subject, f"{len(scores)} motion{'s' * (len(scores) != 1)}")


# --- versions --------------------------------------------------------------------------------------------------------------


def _every_version(api: ApiClient) -> list[str]:
    """Every version that is not yanked, the oldest of each dataset first."""
    found = []
    for dataset in api.list_datasets():
        versions = api.get_dataset(dataset["name"])["versions"]
        found += [f"{dataset['name']}=={version['version']}" for version in reversed(versions) if not version["yanked"]]
    if not found:
        raise InputRefused("the service has no version", remedy="Lock one: ampref dataset lock NAME VERSION")
    return found


def _versions(run: _Run, api: ApiClient, specs: Sequence[str], robot: str | None, *, alone: bool) -> None:
    for spec in specs:
        if not alone:
            run.out.say(f"{'' if spec == specs[0] else chr(10)}{spec}")
        with _going_on(run, alone):
            _version(run, api, spec, robot)


def _version(run: _Run, api: ApiClient, spec: str, robot: str | None) -> None:
    from amp_core.cli.versions import opened_version

    with ExitStack() as open_while_tested:
        with run.out.progress(f"fetching {spec}", total=1.0) as progress:

            def told(share: float, text: str) -> None:
                progress.update(share, description=f"fetching {spec}: {text}")

            version = open_while_tested.enter_context(opened_version(api, spec, robot, told))
        run.test(version.subject, spec, version.waivers, version.locked)


@contextmanager
def _going_on(run: _Run, alone: bool) -> Iterator[None]:
    """Of several versions, one that cannot be tested costs only itself."""
    try:
        yield
    except AmprefError as error:
        if alone:
            raise
        run.refuse(error)


# --- telling ---------------------------------------------------------------------------------------------------------------


def show_tests(out: Output, document: Mapping[str, Any]) -> None:
    """A line a test, and below them why those that did not pass did not."""
    from amp_core.verify.checklist import decisive, row_text

    # Who asked for some tests alone knows that the others were not run.
    tests = [test for test in document["tests"] if test["reason"] != NOT_ASKED]
    rows = []
    for test in tests:
        row = decisive(test["rows"])
        figure = "-" if row is None else row_text({**row, "where": "", "note": ""})
        rows.append((test["status"], test["name"], figure, f"{test['wall_sec']:.1f}"))
    out.table(("Status", "Test", "Nearest to its threshold", ">s"), rows)
    told = [(test["id"], test["status"], test["reason"]) for test in tests if test["reason"]]
    for line in ("", *(f"{name} {status}: {reason}" for name, status, reason in told)) if told else ():
        out.say(line)


_WORDS = {"FAIL": "failed", "WARN": "with a warning", "SKIP": "not run", "PASS": "passed"}


def _tell(out: Output, run: _Run, json_out: Path | None, html_out: Path | None) -> None:
    document = _document(run)
    if json_out and str(json_out) != "-":
        _write(json_out, dumps(document).encode())
    if html_out and run.documents:
        from amp_core.verify.html import page

        first, *more = run.documents
        _write(html_out, page(first, *more, groups=first["groups"]).encode())
    out.document(document)
    several = len(run.documents) > 1
    out.values(
        f"{_name(one)}\t{test['id']}\t{test['status']}" if several else f"{test['id']}\t{test['status']}"
        for one in run.documents
        for test in one["tests"]
    )
    counts = Counter(test["status"] for test in document["tests"])
    said = ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status]) or "nothing was tested"
    out.say(f"\n{document['status']}: {said}" + (f"; {len(run.refused)} refused" if run.refused else ""))
    for label, target in (("report", json_out), ("page", html_out)):
        if target and str(target) != "-" and (run.documents or label == "report"):
            out.say(f"{label}: {target}")
    out.say(f"next: {_next(run, document)}")


def _document(run: _Run) -> dict[str, Any]:
    """The JSON document: of several subjects every test names its own, and `subjects` has each whole."""
    if len(run.documents) == 1:
        return run.documents[0] | {"refused": run.refused}
    tests = [{"subject": _name(one), **test} for one in run.documents for test in one["tests"]]
    from amp_core.verify.report import worst

    return {
        "status": worst([one["status"] for one in run.documents]),
        "ready": bool(run.documents) and all(one["ready"] for one in run.documents),
        "tests": tests,
        "subjects": [{key: value for key, value in one.items() if key != "tests"} for one in run.documents],
        "refused": run.refused,
    }


def _name(document: Mapping[str, Any]) -> str:
    subject = document["subject"]
    return f"{subject['dataset']}=={subject['version']}" if "dataset" in subject else str(subject.get("robot"))


def _next(run: _Run, document: Mapping[str, Any]) -> str:
    locked = any("dataset" in one["subject"] for one in run.documents)
    if document["status"] == "FAIL":
        wanted = "do not train on it" if locked else "mend what the reasons name"
        return f"{wanted}; docs/verification.md says for each test what to do"
    if not run.documents:
        return "ampref score MOTION shows what is wrong with a file"
    if locked:
        return f"ampref pull {_name(run.documents[0])}"
    return "ampref submit MOTION... --wait, then ampref dataset lock NAME VERSION runs the same tests before the lock"
