"""What the clips of a folder come to: tier, reason, errors and processor time of each window, and the yield by class.

    python -m bench.corpus DIR [--robot NAME|robot.yaml] [--cut 5s] [--jobs N] [--out FILE.jsonl] [--markdown FILE]
    python -m bench.corpus --out FILE.jsonl        what a results file has so far, also while a run writes to it

Every window is scored in a process with one thread; `--jobs` of them work side by side. Each finished window is a line of the
results file at once, so that a run may be ended at any moment and goes on where it was by the same command. The windows are
scored in an order that only their digests decide: whatever part of them is finished is a random sample of the whole folder, and
`--limit` scores such a sample.

Exits with 0 when every window was scored, with 1 when one was refused or failed, with 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import selectors
import signal
import sys
import tempfile
import textwrap
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from typer import BadParameter

from amp_core.augment.cutting import DIGITS, split_evenly
from amp_core.children import SocketChild
from amp_core.cli.bulk import find_motions
from amp_core.cli.cut import FrameRange, parse_frames, parse_seconds
from amp_core.cli.exit_codes import FAILED, INTERRUPTED, TERMINATED, USAGE
from amp_core.cli.options import MAX_SECONDS
from amp_core.cli.output import Output, print_error
from amp_core.cli.reading import ReadOptions, limits_of, reading_options
from amp_core.cli.targets import check_file, refuse_unwritable
from amp_core.cli.text import counted, printable
from amp_core.commands import fill_command
from amp_core.cpus import usable_cpus
from amp_core.digests import digest_of, digest_of_file
from amp_core.engine import mujoco
from amp_core.errors import AmprefError, InputRefused, PhysicsFailed
from amp_core.files import NO_ROOM, write_file
from amp_core.formats import QUAT_ORDERS, read_motion
from amp_core.recipe import DEFAULT_MODE, GATE_PROFILE, MODES, Recipe
from amp_core.robot import Robot
from amp_core.strict_json import format_json, json_digest
from amp_core.tiers import GATE_PROFILES, Tier
from bench.corpus_results import Key, Results, ResultsFile, key_of
from bench.corpus_summary import Estimate, build_table, describe_run
from bench.run import machine

ROOT = Path(__file__).parents[1]
CHILD: Sequence[str] = (sys.executable, "-m", "bench.corpus_child")
MAX_FAILURES = 5  # in a row; then it is not the windows' fault.
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal


@dataclass(frozen=True)
class Cut:
    """How clips are cut into windows: of `seconds`, or by `frames`."""

    seconds: float | None = None
    frames: tuple[FrameRange, ...] = ()

    def windows(self, frames: int, fps: float) -> list[tuple[int, int]]:
        """First frame and the one after the last of each window of a clip; empty where it is one window as a whole."""
        if self.seconds is not None:
            windows = split_evenly(frames, fps, self.seconds)
            return windows if len(windows) > 1 else []
        return [(part.start, frames if part.stop is None else part.stop) for part in self.frames]

    def to_dict(self) -> dict[str, Any]:
        if self.seconds is not None:
            return {"seconds": self.seconds}
        return {"frames": [[part.start, part.stop] for part in self.frames]}


@dataclass(frozen=True)
class Window:
    """A window to score.

    Args:
      file: the path of its file below the folder.
      frames: first and last frame; None for the whole clip.
      seconds: how long it lasts.
      request: what the child is asked.
      key: of its line.
    """

    file: str
    name: str
    source_digest: str | None
    frames: tuple[int, int] | None
    seconds: float
    request: dict[str, Any]
    key: Key

    @property
    def identity(self) -> dict[str, Any]:
        """The part of its line that is known before it is scored."""
        return {
            "kind": "window",
            "file": self.file,
            "name": self.name,
            "source_digest": self.source_digest,
            "frames": None if self.frames is None else list(self.frames),
            "recipe_digest": self.key[3],
            "robot_digest": self.key[4],
        }


class Corpus:
    """The windows of a folder, in the order in which they are scored.

    Args:
      cut: None to score whole clips.
      recipe_digest, robot_digest: for the keys.

    Attributes:
      windows: to score.
      refusals: a line for each file that cannot be read.
      copies: the files with the bytes of an earlier one, which is named behind; they are left out.
    """

    def __init__(
        self, folder: Path, paths: Sequence[Path], options: ReadOptions, cut: Cut | None, recipe_digest: str, robot_digest: str
    ) -> None:
        self.windows: list[Window] = []
        self.refusals: list[dict[str, Any]] = []
        self.copies: list[tuple[str, str]] = []
        self._cut, self._digests = cut, (recipe_digest, robot_digest)
        first_files: dict[str, str] = {}
        for path in paths:
            file, digest = path.relative_to(folder).as_posix(), None
            try:
                digest = digest_of_file(path)
                if first_files.setdefault(digest, file) != file:
                    self.copies.append((file, first_files[digest]))
                    continue
                self.windows += self._windows_of(path, file, digest, options(path))
            except AmprefError as error:
                self._refuse(error, path, file, digest)
            except OSError as error:
                self._refuse(InputRefused(f"cannot be read: {error.strerror or error}"), path, file, digest)
        self.windows.sort(key=lambda window: json_digest(window.key[:3]))

    def _windows_of(self, path: Path, file: str, digest: str, options: dict[str, Any]) -> Iterator[Window]:
        motion = read_motion(path, **options)
        parts = self._cut.windows(motion.num_frames, motion.fps) if self._cut else []
        digits = max(DIGITS, len(str(motion.num_frames - 1)))
        child_options = {key: value for key, value in options.items() if key != "limits"}
        for start, stop in parts or [(0, motion.num_frames)]:
            frames, name, seconds = None, motion.name, motion.num_frames / motion.fps
            if parts:
                frames, seconds = (start, stop - 1), (stop - start) / motion.fps
                name = f"{name}_{start:0{digits}d}-{stop - 1:0{digits}d}"
            request = {"path": str(path.resolve()), "file": file, "options": child_options, "frames": frames, "digits": digits}
            key = (digest, *(frames or (None, None)), *self._digests)
            yield Window(file, name, digest, frames, seconds, request | {"source_digest": digest}, key)

    def _refuse(self, error: AmprefError, path: Path, file: str, digest: str | None) -> None:
        error.file, error.remedy = file, fill_command(error.remedy, path)
        window = Window(file, path.stem, digest, None, 0.0, {}, (digest or file, None, None, *self._digests))
        self.refusals.append(window.identity | describe_refusal(error.to_dict()))


def describe_refusal(error: dict[str, Any]) -> dict[str, Any]:
    return {"status": "refused", "reason": error["detail"], "error": error, "wall_sec": 0.0, "cpu_sec": 0.0}


class Worker:
    """A child process that scores one window at a time; `close` ends it.

    Attributes:
      window: that it is at; None while it comes up and when it is idle.
      socket: readable when it has answered or ended.
    """

    def __init__(self, folder: Path, robot: str, recipe: Recipe) -> None:
        self.window: Window | None = None
        self._start = time.perf_counter()
        self._data = b""
        self._errors = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the child
        arguments = (robot, format_json(recipe.to_dict()))
        self._child = SocketChild(CHILD, folder, arguments, files=(__file__,), stderr=self._errors)
        self.socket = self._child.socket

    def begin(self, window: Window) -> None:
        self.window, self._start = window, time.perf_counter()
        with contextlib.suppress(OSError):  # Where it has ended, its socket says so.
            self.socket.sendall(format_json(window.request, ensure_ascii=True).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """What there is of its answer: None until that is whole, or a `fault` where the process has ended."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        self._data += data
        if self._data.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(self._data)
            self._data = b""
            return answer
        return None if data else {"fault": self._describe_end(), "wall_sec": time.perf_counter() - self._start, "ended": True}

    def _describe_end(self) -> str:
        self._child.kill()
        status = self._child.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        text = f"the process ended by {signal.Signals(-status).name}" if status < 0 else f"the process ended with {status}"
        return f"{text}: {lines[-1]}" if lines else text

    def close(self) -> None:
        self._child.close()
        self._errors.close()


def describe_answer(window: Window, answer: dict[str, Any]) -> dict[str, Any]:
    """The line of a window that was answered."""
    times = {"wall_sec": round(answer["wall_sec"], 4), "cpu_sec": round(answer.get("cpu_sec", 0.0), 4)}
    line = window.identity
    if "score" in answer:
        score = answer["score"]
        cost = {"cpu_sec_per_clip_sec": round(times["cpu_sec"] / score["clip_sec"], 4)}
        scored: dict[str, Any] = line | {"status": "scored"} | score | times | cost
        return scored
    if "refusal" in answer:
        return line | describe_refusal(answer["refusal"]) | times
    return line | {"status": "failed", "reason": answer["fault"].strip().splitlines()[-1], "fault": answer["fault"]} | times


def score_windows(windows: Sequence[Window], robot: str, recipe: Recipe, jobs: int) -> Generator[tuple[Window, dict[str, Any]]]:
    """Score windows in child processes; each with its line, as they are finished.

    Raises:
      PhysicsFailed: no child comes up, or one window after the other fails.
    """
    queue = deque(windows)
    failures = 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ampref-corpus-")))
        selector = stack.enter_context(selectors.DefaultSelector())

        def start_worker() -> None:
            worker = Worker(folder, robot, recipe)
            stack.callback(worker.close)
            selector.register(worker.socket, selectors.EVENT_READ, worker)

        for _ in range(min(jobs, len(queue))):
            start_worker()
        while selector.get_map():
            for key, _ in selector.select():
                worker: Worker = key.data
                answer = worker.receive()
                if answer is None:
                    continue
                window, worker.window = worker.window, None
                if window is not None:
                    yield window, describe_answer(window, answer)
                if "fault" in answer:
                    failures += 1
                    if window is None or failures >= MAX_FAILURES:
                        raise PhysicsFailed(
                            f"the processes that score fail: {answer['fault'].strip().splitlines()[-1]}",
                            expected="processes that score most windows",
                            remedy="See the lines with status failed in the results file; score one of their clips alone",
                        )
                elif window is not None:
                    failures = 0
                if "ended" in answer:
                    selector.unregister(worker.socket)
                    worker.close()
                    if queue:
                        start_worker()
                elif queue:
                    worker.begin(queue.popleft())
                else:
                    selector.unregister(worker.socket)
                    worker.close()


class ProgressLine:
    """How far the run has come: a line that moves on a terminal, elsewhere a line now and then; on stderr."""

    def __init__(self, earlier: Sequence[dict[str, Any]], remaining: Sequence[Window], jobs: int) -> None:
        self._count, self._jobs = len(earlier) + len(remaining), jobs
        self._remaining = {window.key: window.seconds for window in remaining}
        self._earlier = [_time_of(line) for line in earlier if line["status"] == "scored"]
        self._current: list[tuple[float, float]] = []
        self._tiers = Counter(line["tier"] for line in earlier if line["status"] == "scored")
        self._next_line = 0.0

    def update(self, line: dict[str, Any]) -> None:
        del self._remaining[key_of(line)]
        if line["status"] == "scored":
            self._current.append(_time_of(line))
            self._tiers[line["tier"]] += 1
        is_terminal = sys.stderr.isatty()
        if is_terminal or time.monotonic() >= self._next_line or not self._remaining:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            sys.stderr.write(f"\r{self}\x1b[K" if is_terminal else f"{self}\n")
            sys.stderr.flush()

    def close(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def __str__(self) -> str:
        tiers = ", ".join(f"{self._tiers[tier]} {tier.label}" for tier in Tier)
        return f"{self._count - len(self._remaining):,} of {self._count:,} windows: {tiers}; {self._describe_left()}"

    def _describe_left(self) -> str:
        """By this run's windows, because an earlier run may have had another machine or more beside it."""
        if not self._remaining:
            return "finished"
        left = list(self._remaining.values())
        estimate = Estimate.of(self._current, left, self._jobs)
        if estimate is not None:
            return str(estimate)
        estimate = Estimate.of(self._earlier, left, self._jobs)
        return "time left not known yet" if estimate is None else f"{estimate} by earlier runs"


def _time_of(line: dict[str, Any]) -> tuple[float, float]:
    return line["clip_sec"], line["wall_sec"]


def parse_cut(text: str) -> float | FrameRange:
    """`5s` or `5`, seconds; or `A:B`, frames."""
    try:
        return parse_frames(text) if ":" in text else parse_seconds(text)
    except BadParameter as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def parse_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return int(text)


def build_cut(values: Sequence[float | FrameRange]) -> Cut | None:
    """The cut that the values of `--cut` describe; None without any.

    Raises:
      InputRefused: they do not go together.
    """
    frames = tuple(value for value in values if isinstance(value, FrameRange))
    seconds = [value for value in values if isinstance(value, float)]
    if len(seconds) > 1 or (seconds and frames):
        raise InputRefused(
            "these cuts do not go together", key="--cut", expected="one length such as 5s, or ranges of frames such as 0:150"
        )
    return Cut(seconds[0] if seconds else None, frames) if values else None


def build_settings(robot: Robot, recipe: Recipe, cut: Cut | None, fps: float | None, quat_order: str | None) -> dict[str, Any]:
    """What all windows of a results file have in common."""
    settings = {
        "robot": robot.name,
        "robot_digest": robot.digest,
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest,
        "mujoco_version": mujoco.__version__,
        "cut": None if cut is None else cut.to_dict(),
        "fps": fps,
        "quat_order": quat_order,
    }
    result: dict[str, Any] = json.loads(format_json(settings))  # Tuples become lists, as in the file.
    return result


def describe_session(corpus: Corpus, jobs: int) -> dict[str, Any]:
    """The line of a run: its machine, and the state of the code, which may change without another generator version."""
    code = b"".join(path.read_bytes() for path in sorted((ROOT / "amp_core").rglob("*.py")))
    facts = machine()
    return {
        "kind": "session",
        "begin": datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": facts["processor"],
        "cores": facts["cores"],
        "python": facts["python"],
        "jobs": jobs,
        "windows": len(corpus.windows) + len(corpus.refusals),
        "clip_sec": round(sum(window.seconds for window in corpus.windows), 3),
        "code": digest_of(code),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.corpus", description="Score the clips of a folder, window by window."
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="without it, show what --out has")
    parser.add_argument("--robot", default="wildrobot", help="a bundled robot's name, or a path to a robot.yaml")
    parser.add_argument("--mode", choices=MODES, default=DEFAULT_MODE)
    parser.add_argument("--profile", choices=GATE_PROFILES, default=GATE_PROFILE, help="the gate profile")
    parser.add_argument("--seed", type=parse_count, default=0, help="the recipe's seed")
    parser.add_argument("--fps", type=float, help="frames per second, for .csv files")
    parser.add_argument("--quat-order", choices=QUAT_ORDERS, help="for .csv files")
    parser.add_argument(
        "--cut", type=parse_cut, action="append", default=[], metavar="SECONDS|A:B",
        help="windows of this length, such as 5s; or of the frames A to B − 1, repeatable",
    )  # fmt: skip
    parser.add_argument("--jobs", type=parse_count, default=usable_cpus(), help="windows at once, each on one thread")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="the results; default corpus-DIR.jsonl")
    parser.add_argument(
        "--limit", type=parse_count, metavar="N", help="score N windows at most, a random sample; 0 scores none"
    )
    parser.add_argument("--class-of", type=parse_pattern, metavar="REGEX", help="a file's class: its first group in the path")
    parser.add_argument("--by", choices=("class", "clip"), default="class", help="the rows of the table")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into FILE, too")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Score what is missing in the results file, and show what is in it."""
    if arguments.markdown is not None:
        check_file(arguments.markdown)
    if arguments.folder is None:
        if arguments.out is None:
            raise InputRefused("there is neither a folder nor a results file", expected="DIR, or --out FILE.jsonl, or both")
        results = Results.read(arguments.out)
    else:
        out_file = arguments.out or Path(f"corpus-{arguments.folder.resolve().name}.jsonl")
        results = score_folder(arguments, out_file)
    show(results, arguments)
    is_complete = all(line["status"] == "scored" for line in results.windows.values())
    return 0 if is_complete else FAILED


def score_folder(arguments: argparse.Namespace, out_file: Path) -> Results:
    """Score the windows of a folder that a results file does not have yet."""
    folder, jobs = arguments.folder, max(1, arguments.jobs)
    if not folder.is_dir():
        raise InputRefused("is no folder", file=str(folder), expected="a folder of motion files", remedy="Name their folder")
    check_file(out_file)
    cut = build_cut(arguments.cut)
    recipe = replace(Recipe.for_mode(arguments.mode, seed=arguments.seed), gate_profile=arguments.profile)
    robot = Robot.load(arguments.robot)
    robot_source = str(Path(arguments.robot).resolve()) if Path(arguments.robot).exists() else arguments.robot
    settings = build_settings(robot, recipe, cut, arguments.fps, arguments.quat_order)
    with ResultsFile(out_file, settings) as file:
        if file.results.torn:
            print(f"{out_file}: a last line of {file.results.torn} bytes was not whole and is dropped", file=sys.stderr)
        paths = find_motions([folder])
        limits = limits_of(MAX_SECONDS) if cut else None
        options = reading_options(paths, arguments.fps, arguments.quat_order, Output(), limits)
        corpus = Corpus(folder, paths, options, cut, recipe.digest, robot.digest)
        for copy, original in corpus.copies:
            print(f"{copy} holds the bytes of {original} and is left out", file=sys.stderr)
        finished = {key: line for key, line in file.results.windows.items() if line["status"] != "failed"}
        earlier = [finished[window.key] for window in corpus.windows if window.key in finished]
        remaining = [window for window in corpus.windows if window.key not in finished]
        texts = counted(len(paths), "file"), counted(len(corpus.windows), "window")
        print(f"{', '.join(texts)}, {len(earlier)} of them finished", file=sys.stderr)
        remaining = remaining if arguments.limit is None else remaining[: arguments.limit]
        refusals = [line for line in corpus.refusals if key_of(line) not in finished]
        if remaining or refusals or not file.results.sessions:
            file.append(describe_session(corpus, jobs))
        for line in refusals:
            file.append(line)
            print_refusal(line)
        progress = ProgressLine(earlier, remaining, jobs)
        lines = score_windows(remaining, robot_source, recipe, jobs)
        try:
            for _, line in lines:
                file.append(line)
                if line["status"] != "scored":
                    print_refusal(line)
                progress.update(line)
        finally:
            lines.close()
            progress.close()
        # Lines of files that have changed or gone since are no part of this folder.
        keys = {window.key for window in corpus.windows} | {key_of(line) for line in corpus.refusals}
        return replace(file.results, windows={key: line for key, line in file.results.windows.items() if key in keys})


def print_refusal(line: dict[str, Any]) -> None:
    name = f"{line['name']}: " if line["status"] == "failed" or line["frames"] is not None else ""
    sys.stderr.write(f"{line['status']}: {printable(name + line['reason'])}\n")


def show(results: Results, arguments: argparse.Namespace) -> None:
    """Print the table, and write it into `--markdown`."""
    if not results.windows:
        print("no window is finished yet")
        return
    texts = describe_run(results)
    print("\n".join((*texts, "", build_table(results, arguments.by, arguments.class_of))))
    if arguments.markdown is not None:
        prose = "\n".join(textwrap.fill(text, 120) for text in texts)
        table = build_table(results, arguments.by, arguments.class_of, pad=False)
        with refuse_unwritable(arguments.markdown):
            write_file(arguments.markdown, f"{prose}\n\n{table}\n".encode())


def main(words: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(words)
    try:
        return run(arguments)
    except AmprefError as error:
        print_error(error)
        return FAILED
    except BadParameter as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept, and the same command goes on with the rest", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(
            f"error: {error.strerror}; what is finished is kept. Make room, then start the same command again", file=sys.stderr
        )
        return FAILED


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.exit(main())
