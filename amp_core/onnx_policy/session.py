"""A policy that answers: the model in a child process with limits, asked from here.

An ONNX file is a program of its author: it may loop without end, ask for any amount of memory, or meet a fault of the library.
So it runs in `amp_core.onnx_policy.child`, and whatever happens there is an answer or a `PolicyRefused` here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from amp_core.children import SocketChild
from amp_core.errors import PolicyRefused, Unavailable
from amp_core.onnx_policy.model_file import ModelFile
from amp_core.onnx_policy.wire import BrokenMessage, ConnectionEnded, receive, send

__all__ = ["CHILD", "PolicyLimits", "PolicySession"]

CHILD: tuple[str, ...] = (sys.executable, "-P", "-m", "amp_core.onnx_policy.child")

_START_SEC = 60.0  # For the interpreter and its imports: they say nothing of the policy.
_START_CPU_SEC = 60  # Of the same.
_MAX_ANSWER = 32 << 20  # Bytes.


@dataclass(frozen=True)
class PolicyLimits:
    """What a policy may use.

    Args:
      memory_mb: MiB of its child's private memory, onnxruntime included.
      load_sec: s by the clock, to load the model.
      step_sec: s by the clock, for one answer.
      total_sec: s by the clock and of the processor, for loading and all answers together.
    """

    memory_mb: int = 1024
    load_sec: float = 60.0
    step_sec: float = 5.0
    total_sec: float = 600.0


class PolicySession:
    """A loaded model; a context manager that ends its child.

    Args:
      command: what to start; tests put a misbehaving child here.

    Raises:
      ModuleNotFoundError: onnxruntime, the extra `[track]`, is not installed.
      PolicyRefused: the model cannot be loaded within the limits.
      Unavailable: no child could be started.
    """

    def __init__(self, model: ModelFile, limits: PolicyLimits | None = None, *, command: Sequence[str] = CHILD) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise ModuleNotFoundError("onnxruntime is not installed; install ampref with the extra [track]", name="onnxruntime")
        self._model, self._limits = model, limits or PolicyLimits()
        self._spent_sec = 0.0
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ampref-policy-")))
            self._errors = stack.enter_context((folder / "stderr").open("w+b"))
            arguments = (self._limits.memory_mb, _START_CPU_SEC + int(self._limits.total_sec))
            try:
                self._child = SocketChild(command, folder, arguments, stderr=self._errors)
            except OSError as error:
                raise Unavailable(f"no process can be started for the policy: {error.strerror or error}") from error
            stack.callback(self._child.close)
            with self._child.watch(_START_SEC), contextlib.suppress(OSError, BrokenMessage, ConnectionEnded):
                self.runtime_version = str(receive(self._child.socket, 0)[0]["ready"])
            if not hasattr(self, "runtime_version"):
                self._child.kill()
                raise Unavailable(f"the process for the policy did not come up{self._last_error()}", remedy="Try again")
            self._ask({}, {"model": np.frombuffer(model.data, np.uint8)}, self._limits.load_sec, "loaded")
            self._stack = stack.pop_all()

    def __enter__(self) -> PolicySession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the model, by name.

        Raises:
          PolicyRefused: it fails on these inputs, or leaves the limits.
        """
        answer = self._ask({"outputs": list(outputs)}, inputs, self._limits.step_sec, "run")
        if set(answer) != set(outputs):
            self._refuse("the policy's process answered something else than was asked")
        return answer

    def _ask(
        self, message: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], timeout_sec: float, verb: str
    ) -> dict[str, npt.NDArray[Any]]:
        limits, start = self._limits, time.monotonic()
        answer: dict[str, Any] | None = None
        result: dict[str, npt.NDArray[Any]] = {}
        timeout_sec = min(timeout_sec, max(0.01, limits.total_sec - self._spent_sec))
        with self._child.watch(timeout_sec), contextlib.suppress(OSError, BrokenMessage, ConnectionEnded):
            send(self._child.socket, message, arrays)
            answer, result = receive(self._child.socket, _MAX_ANSWER)
        self._spent_sec += time.monotonic() - start
        if answer is None:
            self._child.kill()
            self._refuse_end(self._child.wait(), verb, timeout_sec)
        if answer.get("memory"):
            self._refuse_memory()
        if "failed" in answer:
            self._refuse(f"the model cannot be {verb}: {str(answer['failed'])[:600]}")
        return result

    def _refuse_end(self, status: int, verb: str, timeout_sec: float) -> NoReturn:
        """Say why the child ended before its answer."""
        if self._child.is_late or status == -signal.SIGXCPU:
            if self._child.is_late and self._spent_sec < self._limits.total_sec:
                self._refuse(
                    f"the model was not {verb} within {timeout_sec:g} s, so it was stopped",
                    "a network without loops that do not end",
                    "Give it more with --step-time, where the machine is slow",
                )
            self._refuse(
                f"the policy has used up its {self._limits.total_sec:g} s",
                "less time for all answers together",
                "Give it more with --total-time, or cut the clip",
            )
        text = self._last_error()
        if "bad_alloc" in text or "allocate memory" in text:
            self._refuse_memory()
        ending = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._refuse(f"the policy's process ended with {ending} before the model was {verb}{text}")

    def _refuse_memory(self) -> NoReturn:
        self._refuse(
            f"the policy needs more than its {self._limits.memory_mb:,} MiB of memory",
            "a policy that runs in this",
            "Give it more with --memory, where the model is that large",
        )

    def _last_error(self) -> str:
        """The last line that the child wrote to its standard error, in brackets."""
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        return f" ({lines[-1].strip()[:300]})" if lines else ""

    def _refuse(self, what: str, expected: str | None = None, remedy: str | None = None) -> NoReturn:
        raise PolicyRefused(
            what,
            file=self._model.file,
            expected=expected,
            remedy=remedy or "Export the policy again, and run it once where it was made",
        )
