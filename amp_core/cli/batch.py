"""Work on many motions, a batch at a time: results come in while work goes on, and a refused motion costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from amp_core.cli.progress import Progress
from amp_core.cli.reading import ReadOptions, read_motions
from amp_core.errors import AmprefError
from amp_core.formats import Motion
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import Score, check_scorable, score

# Enough to keep every thread busy, few enough that their arrays fit in memory and that results come in while work goes on.
BATCH_PER_THREAD = 16
# Planning takes a thread for seconds a clip: a few of them keep it busy.
PLANNED_PER_THREAD = 4

T = TypeVar("T")
Report = Callable[[float, str], None]
"""Called with the share that is done, in [0, 1], and a few words."""
Run = Callable[[list[Motion], Report], Sequence[T]]
"""Works on motions together and returns a result for each; raises an `AmprefError` if one of them cannot be used."""


@dataclass(frozen=True, slots=True)
class Processed(Generic[T]):
    """A motion file after its batch.

    Args:
      motion: None if the file was refused before any run.
      results: one a run; None where that run refused the motion.
      refusal: the first refusal, if any.
    """

    path: Path
    motion: Motion | None
    results: Sequence[T | None]
    refusal: AmprefError | None


def process_files(
    paths: Sequence[Path],
    options: ReadOptions,
    robot: Robot,
    recipe: Recipe,
    nthread: int,
    runs: Sequence[Run[T]],
    progress: Progress,
) -> Iterator[Processed[T]]:
    """Read motion files, work on the motions in every run, and yield them in the order of the files.

    Args:
      robot, recipe: a motion that cannot be scored with them is refused before any run.
      recipe, nthread: decide how large a batch is.
      runs: what is done with each batch.
      progress: counts a motion once for each run; its description names what is being done.
    """
    batch_size = nthread * (BATCH_PER_THREAD if recipe.planner is None else PLANNED_PER_THREAD)
    readings = read_motions(paths, options, partial(check_scorable, robot=robot, recipe=recipe))
    files = zip(paths, readings, strict=True)
    verb, done = progress.description, 0
    while batch := list(islice(files, batch_size)):
        readable = [(path, motion) for path, motion in batch if isinstance(motion, Motion)]
        columns = [iter(_run_batch(readable, run, progress, verb)) for run in runs]
        for path, motion in batch:
            if isinstance(motion, AmprefError):
                yield Processed(path, None, [None] * len(runs), motion)
                continue
            outcomes = [next(column) for column in columns]
            results = [None if isinstance(outcome, AmprefError) else outcome for outcome in outcomes]
            yield Processed(path, motion, results, next((error for error in outcomes if isinstance(error, AmprefError)), None))
        done += len(batch)
        progress.update(done * len(runs))


def score_run(robot: Robot, recipe: Recipe, nthread: int) -> Run[Score]:
    """The run that scores motions under a recipe."""
    return lambda motions, report: score(motions, robot, recipe, nthread=nthread, progress=report)


def _run_batch(motions: Sequence[tuple[Path, Motion]], run: Run[T], progress: Progress, verb: str) -> list[T | AmprefError]:
    """Run a batch; if that fails, its motions one by one, so that one bad motion costs only itself."""
    if not motions:
        return []
    start = progress.done

    def report(share: float, message: str) -> None:
        progress.update(start + share * len(motions), description=f"{verb}: {message}")

    try:
        return list(run([motion for _, motion in motions], report))
    except AmprefError as error:
        if len(motions) == 1:
            error.file = error.file or str(motions[0][0])
            return [error]
    return [outcome for entry in motions for outcome in _run_batch([entry], run, progress, verb)]
