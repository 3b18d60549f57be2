"""Sequences whose items are made when they are asked for, so that many of them need no memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

__all__ = ["LazySequence"]

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """Item i is `make(i)`, anew each time.

    Args:
      count: number of items.
    """

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._numbers = range(count)
        self._make = make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazySequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazySequence[T]:
        if isinstance(index, int):
            return self._make(self._numbers[index])
        numbers = self._numbers[index]
        return LazySequence(len(numbers), lambda i: self._make(numbers[i]))
