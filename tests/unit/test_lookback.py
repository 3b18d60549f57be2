"""Where a plan goes wrong, it is made again from a while before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from amp_core.tracking.branch import Branch
from amp_core.tracking.lookback import LookBack

DT, STRETCH = 0.02, 24


@dataclass
class FakeBranch:
    """A robot that is as far off its clip, and costs as much, as it is told."""

    frame: int = 0
    fell: bool = False
    deviation: float = 0.0
    score: float = 0.0
    strong: bool = False
    log: list[int] = field(default_factory=list)

    def save(self) -> FakeBranch:
        return FakeBranch(self.frame, self.fell, self.deviation, self.score)

    def restore(self, checkpoint: FakeBranch) -> None:
        self.frame, self.fell = checkpoint.frame, checkpoint.fell
        self.deviation, self.score = checkpoint.deviation, checkpoint.score
        self.log.append(self.frame)

    def use_sampler(self, *, strong: bool) -> None:
        self.strong = strong

    def go(self, look_back: LookBack, *, deviation: float = 0.0, fell: bool = False, cost: float = 1.0) -> None:
        self.frame, self.fell = self.frame + STRETCH, fell
        self.deviation, self.score = (np.inf, np.inf) if fell else (deviation, self.score + cost)
        assert look_back.review(cast(Any, self)) is cast(Any, self)


def start() -> tuple[FakeBranch, LookBack]:
    branch = FakeBranch()
    return branch, LookBack(cast("list[Branch]", [branch]), DT)


def test_a_plan_on_its_way_is_never_taken_back() -> None:
    branch, look_back = start()
    for _ in range(20):
        branch.go(look_back, deviation=0.9)
    assert (branch.frame, branch.log) == (20 * STRETCH, [])


def test_a_fall_is_planned_again_from_a_second_before_with_more_simulations() -> None:
    branch, look_back = start()
    for _ in range(4):
        branch.go(look_back)
    branch.go(look_back, fell=True)
    assert (branch.frame, branch.fell, branch.strong) == (3 * STRETCH, False, True)
    branch.go(look_back)
    assert branch.strong, "until it has come as far as the first try"
    branch.go(look_back)
    assert (branch.frame, branch.strong, branch.log) == (5 * STRETCH, False, [3 * STRETCH])


def test_the_second_try_counts_only_where_it_is_better() -> None:
    for cost, frame_log in ((1.0, []), (100.0, [5 * STRETCH])):
        branch, look_back = start()
        for _ in range(4):
            branch.go(look_back)
        branch.go(look_back, deviation=1.5, cost=50.0)
        branch.go(look_back, cost=cost)
        branch.go(look_back, cost=cost, deviation=1.5)
        assert branch.log == [3 * STRETCH, *frame_log]
        assert branch.frame == 5 * STRETCH
        # The same distance is no trouble any more: nothing better was found.
        branch.go(look_back, deviation=1.6 if frame_log else 0.5)
        assert branch.frame == 6 * STRETCH


def test_nearer_to_the_clip_is_better_at_any_cost() -> None:
    branch, look_back = start()
    for _ in range(4):
        branch.go(look_back)
    branch.go(look_back, deviation=1.5, cost=1.0)
    branch.go(look_back, cost=100.0)
    # How near it was counts over the whole of the second try.
    branch.go(look_back, cost=100.0, deviation=1.2)
    assert branch.log == [3 * STRETCH]
    assert branch.frame == 5 * STRETCH


def test_what_no_plan_brings_through_is_tried_from_further_back_each_time_and_then_left() -> None:
    branch, look_back = start()
    for _ in range(9):
        branch.go(look_back)
    for _ in range(40):
        if branch.frame == 9 * STRETCH:
            branch.go(look_back, fell=True)
        else:
            branch.go(look_back)
        if branch.fell:
            break
    assert branch.fell
    assert branch.log == [8 * STRETCH, 7 * STRETCH, 6 * STRETCH]
