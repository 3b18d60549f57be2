"""Work on many motions, a batch at a time: results come in while work goes on, and a refused motion costs only itself.

It needs MuJoCo: a verb imports it when the work begins, so that its help and wrong usage need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from amp_core.cli.output import Output
from amp_core.cli.progress import Progress
from amp_core.cli.reading import ReadOptions, read_motions
from amp_core.errors import AmprefError
from amp_core.formats import Limits, Motion
from amp_core.progress import Progress as Report
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import Score, check_scorable, score

# Enough to keep every thread busy, few enough that their arrays fit in memory and that results come in while work goes on.
BATCH_PER_THREAD = 16
# Planning takes a thread for seconds a clip: a few of them keep it busy.
PLANNED_PER_THREAD = 4

T = TypeVar("T")
Run = Callable[[list[Motion], Report], Sequence[T]]
"""Works on motions together and returns a result for each; raises an `AmprefError` if one of them cannot be used."""


def process_files(
    paths: Sequence[Path],
    options: ReadOptions,
    robot: Robot,
    recipe: Recipe,
    nthread: int,
    runs: Sequence[Run[T]],
    out: Output,
    progress: Progress,
    limits: Limits | None = None,
) -> Iterator[tuple[Motion | None, list[T | None]]]:
    """Read motion files and work on the motions in every run.

    Args:
      robot, recipe: a motion that cannot be scored with them is refused before any run.
      recipe, nthread: decide how large a batch is.
      runs: the work on each batch.
      limits: of the motions; the default ones where None.
      progress: counts a motion once for each run; its description names the work.

    Yields:
      For each file in order its motion, None if it was refused before any run, and a result a run, None where that run refused
      the motion. The first refusal of a file is printed.
    """
    batch_size = nthread * (BATCH_PER_THREAD if recipe.planner is None else PLANNED_PER_THREAD)
    readings = zip(
        paths, read_motions(paths, options, partial(check_scorable, robot=robot, recipe=recipe, limits=limits)), strict=True
    )
    end = 0
    while batch := list(islice(readings, batch_size)):
        readable = [(path, motion) for path, motion in batch if isinstance(motion, Motion)]
        columns = [iter(_run_batch(readable, run, progress)) for run in runs]
        for _, motion in batch:
            outcomes = [motion] * len(runs) if isinstance(motion, AmprefError) else [next(column) for column in columns]
            if errors := [outcome for outcome in outcomes if isinstance(outcome, AmprefError)]:
                out.refuse(errors[0])
            results = [None if isinstance(outcome, AmprefError) else outcome for outcome in outcomes]
            yield motion if isinstance(motion, Motion) else None, results
        end += len(batch) * len(runs)
        progress.update(end)


def score_run(robot: Robot, recipe: Recipe, nthread: int, limits: Limits | None = None) -> Run[Score]:
    """The run that scores motions under a recipe."""
    return lambda motions, report: score(motions, robot, recipe, nthread=nthread, progress=report, limits=limits)


def _run_batch(motions: Sequence[tuple[Path, Motion]], run: Run[T], progress: Progress) -> list[T | AmprefError]:
    """Run a batch; if that fails, its motions one by one, so that one bad motion costs only itself."""
    if not motions:
        return []
    start = progress.amount

    def report(share: float, message: str) -> None:
        progress.update(start + share * len(motions), message)

    try:
        return list(run([motion for _, motion in motions], report))
    except AmprefError as error:
        if len(motions) == 1:
            error.file = error.file or str(motions[0][0])
            return [error]
    return [outcome for entry in motions for outcome in _run_batch([entry], run, progress)]
