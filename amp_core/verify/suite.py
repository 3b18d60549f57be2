"""The ten tests in the specification's order, and their run on a subject."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from amp_core.errors import InputRefused
from amp_core.readiness import TEST_TITLES
from amp_core.verify.context import Context
from amp_core.verify.coverage import batch_coverage, contact_consistency
from amp_core.verify.determinism import generator_determinism
from amp_core.verify.parity import feature_assembly, physics_integration
from amp_core.verify.report import FAIL, SKIP, TestReport, Verification
from amp_core.verify.sanity import distribution_sanity, harness_contribution
from amp_core.verify.smoke import run as micro_train
from amp_core.verify.subject import Subject
from amp_core.verify.symmetry import quaternion_sign, yaw_invariance


@dataclass(frozen=True)
class Test:
    """One test of the specification.

    Args:
      id: `1A` … `7`, `smoke`.
      title: in words.
      run: tests a context's subject.
      weight: its share of the progress, about its time on a version of a minute.
    """

    __test__ = False  # The name is not for pytest to collect.

    id: str
    title: str
    run: Callable[[Context], TestReport]
    weight: float = 1.0


TESTS: tuple[Test, ...] = tuple(
    Test(id, TEST_TITLES[id], run, weight)
    for id, run, weight in (
        ("1A", feature_assembly, 1.0),
        ("1B", physics_integration, 4.0),
        ("1C", generator_determinism, 6.0),
        ("2", yaw_invariance, 8.0),
        ("3", quaternion_sign, 2.0),
        ("4", batch_coverage, 1.0),
        ("5", contact_consistency, 1.0),
        ("6", distribution_sanity, 4.0),
        ("7", harness_contribution, 0.2),
        ("smoke", micro_train, 60.0),
    )
)
"""Every test, in the specification's order."""


def verify(
    subject: Subject,
    only: Collection[str] | None = None,
    nthread: int = 2,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
    **seams: Any,
) -> Verification:
    """Run the tests on a subject.

    Args:
      only: ids of the tests to run; the others are SKIP with the reason `not asked for`.
      nthread: threads that may be used; no outcome depends on it.
      seed: of the tests' random numbers.
      progress: called with the finished share, in [0, 1], and a few words; an exception from it ends the work and is passed on.
      **seams: other fields of `Context`: `frames`, `iterations`, or another policy or generator in the place of the product's
        own.

    Raises:
      InputRefused: `only` names an unknown test.
    """
    unknown = [name for name in only or () if name not in TEST_TITLES]
    if unknown:
        raise InputRefused(f"there is no test {unknown[0]!r:.40}", key="only", expected=f"of {', '.join(TEST_TITLES)}")
    context = Context(subject=subject, nthread=nthread, seed=seed, **seams)
    total = sum(test.weight for test in TESTS if only is None or test.id in only)
    reports, finished_weight = [], 0.0
    for test in TESTS:
        if only is not None and test.id not in only:
            reports.append(TestReport(test.id, test.title, SKIP, reason="not asked for"))
            continue
        part = _PartialProgress(progress or (lambda share, text: None), finished_weight / total, test.weight / total, test.id)
        part(0.0, test.title)
        start_time = time.perf_counter()
        try:
            report = test.run(replace(context, progress=part))
        except Exception as error:
            if part.error is error:
                raise
            # An error in a test is a FAIL of that test, and the others still run.
            reason, wall_sec = f"the test itself failed: {type(error).__name__}: {error}", time.perf_counter() - start_time
            report = TestReport(test.id, test.title, FAIL, reason, wall_sec=wall_sec)
        reports.append(report)
        finished_weight += test.weight
    if progress is not None:
        progress(1.0, "every test has run")
    return Verification(subject=subject.to_dict(), tests=tuple(reports))


class _PartialProgress:
    """One test's part of the whole progress; it keeps an exception of the callback, which is no failure of the test."""

    def __init__(self, callback: Callable[[float, str], None], begin: float, length: float, name: str) -> None:
        self._callback, self._begin, self._length, self._name = callback, begin, length, name
        self.error: BaseException | None = None

    def __call__(self, share: float, text: str) -> None:
        try:
            self._callback(min(1.0, self._begin + self._length * share), f"test {self._name}: {text}")
        except BaseException as error:
            self.error = error
            raise
