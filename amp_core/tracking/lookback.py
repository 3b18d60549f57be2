"""Looking back: where a plan has gone wrong, it is made again from a while before, with twice the simulations.

A fall, or a robot that is far from its clip, is the outcome of what was planned a second earlier. To make only that stretch
again costs a fraction of another attempt at the whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence

from amp_core.tracking.branch import Branch, Checkpoint

_BACK_SEC = (0.9, 1.4, 1.9)
"""How far back the first, second and third time at the same place."""

_SAME_PLACE_SEC = 0.6
_MOST = 3
"""Times in a clip for falls, and as many for all else: what no plan can bring through is not tried for ever."""

_WORSE = 1.3
"""A robot that is off its clip and could not be planned nearer is let go on, until it is by so much farther off."""

REACH_SEC = 2.5
"""More than a plan is ever taken back from where it has come to."""


class LookBack:
    """Watches the plans of one attempt.

    Args:
      branches: at the first frame; they go on together from the best one's state.
      dt: s, a frame.
    """

    def __init__(self, branches: Sequence[Branch], dt: float) -> None:
        self._branches, self._dt = branches, dt
        self._checkpoints = [branches[0].save()]
        self._places: list[int] = []
        self._fallen = 0
        self._first_try: tuple[Checkpoint, tuple[float, float]] | None = None
        self._tolerance = self._worst = 0.0

    def review(self, best: Branch) -> Branch:
        """The branch from whose state all go on: the best one, or one that is back at an earlier frame."""
        if self._first_try is not None:
            checkpoint, merit = self._first_try
            self._worst = max(self._worst, best.deviation)
            if best.frame < checkpoint.frame and not best.fell:
                return best  # The second try is on its way.
            self._first_try = None
            self._strengthen(strong=False)
            if (max(1.0, self._worst), best.score) >= merit and not checkpoint.fell:
                best = self._return_to(checkpoint)
            if not best.fell:
                self._tolerance = best.deviation
                self._checkpoints.append(best.save())
                return best
        deviation = best.deviation
        self._tolerance = self._tolerance if deviation > 1.0 else 0.0
        times = self._fallen if best.fell else len(self._places) - self._fallen
        if deviation > max(1.0, _WORSE * self._tolerance) and times < _MOST:
            self._fallen += best.fell
            return self._go_back(best)
        if not best.fell:
            self._checkpoints.append(best.save())
        return best

    def _go_back(self, best: Branch) -> Branch:
        times = sum(abs(place - best.frame) * self._dt < _SAME_PLACE_SEC for place in self._places)
        earliest = best.frame - round(_BACK_SEC[min(times, len(_BACK_SEC) - 1)] / self._dt)
        while len(self._checkpoints) > 1 and self._checkpoints[-1].frame > earliest:
            self._checkpoints.pop()
        self._places.append(best.frame)
        # What is nearer to the clip is better, and of two that are near what costs less.
        self._first_try, self._worst = (best.save(), (best.deviation, best.score)), 0.0
        self._strengthen(strong=True)
        return self._return_to(self._checkpoints[-1])

    def _strengthen(self, *, strong: bool) -> None:
        for branch in self._branches:
            branch.use_sampler(strong=strong)

    def _return_to(self, checkpoint: Checkpoint) -> Branch:
        for branch in self._branches:
            branch.restore(checkpoint)
        return self._branches[0]
