"""The ten tests on motions and on locked versions, one subject after the other, and the report of all of them.

It needs MuJoCo: the verb imports it when the work begins, so that its help and wrong usage need none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from amp_core import verify as readiness
from amp_core.cli.batch import process_files, score_run
from amp_core.cli.output import Output
from amp_core.cli.reading import ReadOptions
from amp_core.cli.recipes import build_recipe
from amp_core.cli.targets import refuse_unwritable
from amp_core.cli.text import counted
from amp_core.cli.versions import open_version
from amp_core.client import ApiClient
from amp_core.errors import AmprefError, InputRefused
from amp_core.files import write_file
from amp_core.robot import Robot
from amp_core.verify import Subject, checklist
from amp_core.verify.html import page
from amp_core.verify.report import worst

DEFAULT_ROBOT = "wildrobot"
NOT_ASKED = "not asked for"
"""The reason of a test that `--only` leaves out."""
STATUS_WORDS = {"FAIL": "failed", "WARN": "with a warning", "SKIP": "not run", "PASS": "passed"}


class Tester:
    """Runs the tests on one subject after the other.

    Args:
      limits: `frames` and `iterations` of a verification's `Context`.

    Attributes:
      documents: the JSON objects of the subjects that were tested.
    """

    def __init__(self, out: Output, only: Sequence[str] | None, nthread: int, seed: int, **limits: int | None) -> None:
        self._out, self._only, self._nthread, self._seed, self._limits = out, only, nthread, seed, limits
        self.documents: list[dict[str, Any]] = []

    def test_motions(
        self, paths: Sequence[Path], options: ReadOptions, robot_name: str | None, mode: str | None, profile: str | None = None
    ) -> None:
        """Score motions, and test them as one set."""
        recipe = build_recipe(None, mode, self._seed, profile=profile)
        robot = Robot.load(robot_name or DEFAULT_ROBOT)
        with self._out.progress("scoring", total=len(paths)) as progress:
            runs = [score_run(robot, recipe, self._nthread)]
            files = process_files(paths, options, robot, recipe, self._nthread, runs, self._out, progress)
            pairs = [(score, motion) for motion, (score,) in files if motion is not None and score is not None]
        if pairs:
            scores, motions = zip(*pairs, strict=True)
            self._test(Subject.of_scores(scores, motions, robot), counted(len(pairs), "motion"))

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
                version = stack.enter_context(open_version(api, spec, robot, progress.update))
            self._test(version.subject, spec, version.waivers, version.locked)

    def _test(
        self, subject: Subject, label: str, waivers: Sequence[Mapping[str, Any]] = (), locked: Mapping[str, str] | None = None
    ) -> None:
        """Run the tests and print a line for each, and below them why those that did not pass did not."""
        with self._out.progress(f"testing {label}", total=1.0) as progress:
            verification = readiness.verify(
                subject, only=self._only, nthread=self._nthread, seed=self._seed, progress=progress.update, **self._limits
            )
        document = checklist.document(verification, waivers, locked)
        self.documents.append(document)
        # Tests that `--only` left out are not listed.
        tests = [test for test in document["tests"] if test["reason"] != NOT_ASKED]
        rows = []
        for test in tests:
            row = checklist.decisive_row(test["rows"])
            value = None if row is None else checklist.row_text({**row, "where": "", "note": ""})
            rows.append((test["status"], test["name"], value, f"{test['wall_sec']:.1f}"))
        self._out.print_table(("Status", "Test", "Nearest to its threshold", ">s"), rows)
        reasons = [f"{test['id']} {test['status']}: {test['reason']}" for test in tests if test["reason"]]
        for line in ("", *reasons) if reasons else ():
            self._out.print(line)
        for waiver in waivers:
            self._out.print(f"{waiver['test']} was waived at the lock: {waiver['reason']}")

    def print_outcome(self, html_out: Path | None) -> None:
        """Print and write the report; end with 1 if a test failed or something was refused.

        In the JSON document of several subjects every test names its own, and `subjects` has the rest of each.
        """
        out, documents = self._out, self.documents
        document: dict[str, Any] = {
            "status": worst([subject["status"] for subject in documents]),
            "ready": bool(documents) and all(subject["ready"] for subject in documents),
            "tests": [{"subject": _subject_name(subject), **test} for subject in documents for test in subject["tests"]],
            "subjects": [{key: value for key, value in subject.items() if key != "tests"} for subject in documents],
        }
        document = documents[0] if len(documents) == 1 else document
        document = document | {"refused": [error.to_dict() for error in out.refusals]}
        values = [
            (f"{_subject_name(subject)}\t" if len(documents) > 1 else "") + f"{test['id']}\t{test['status']}"
            for subject in documents
            for test in subject["tests"]
        ]
        out.print_result(document, values)
        counts = Counter(test["status"] for test in document["tests"])
        summary = ", ".join(f"{counts[status]} {word}" for status, word in STATUS_WORDS.items() if counts[status])
        refusals = f"; {len(out.refusals)} refused" if out.refusals else ""
        out.print(f"\n{document['status']}: {summary or 'nothing was tested'}{refusals}")
        if out.file:
            out.print(f"report: {out.file}")
        if html_out and documents:
            with refuse_unwritable(html_out):
                write_file(html_out, page(*documents).encode(), durable=True)
            out.print(f"page: {html_out}")
        is_locked = any("dataset" in subject["subject"] for subject in documents)
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


def _subject_name(document: Mapping[str, Any]) -> str:
    subject = document["subject"]
    return f"{subject['dataset']}=={subject['version']}" if "dataset" in subject else str(subject.get("robot"))
