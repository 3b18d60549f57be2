"""The child that holds a policy: it loads one model and answers observations with actions, until its parent ends.

    python -P -m amp_core.onnx_policy.child SOCKET PARENT MEMORY_MB CPU_SEC

Messages are those of `amp_core.onnx_policy.wire`. A model and what it computes are not trusted: this process has limits on
memory, processor time and files, one thread, no secrets in its environment, and only numbers leave it. onnxruntime runs on the
processor alone, and libraries of operators are never loaded.
"""

from __future__ import annotations

import faulthandler
import socket
import sys
from typing import Any

from amp_core.children import limit_process, tie_to_parent
from amp_core.onnx_policy.wire import ConnectionEnded, receive, send

__all__ = ["main"]

_FILE_MB = 1
_OPEN_FILES = 128
_MAX_BYTES = 256 << 20
_MAX_REASON = 600
_MEMORY_SIGNS = ("bad_alloc", "bad allocation", "allocate memory", "Failed to allocate", "MemoryError")


def main() -> None:
    descriptor, parent, memory_mb, cpu_sec = map(int, sys.argv[1:])
    tie_to_parent(parent)
    connection = socket.socket(fileno=descriptor)
    import onnxruntime  # noqa: PLC0415 - it brings processor time and memory that the parent must be tied to first

    release_memory = limit_process(memory_mb=memory_mb, file_mb=_FILE_MB, open_files=_OPEN_FILES, cpu_sec=cpu_sec)
    faulthandler.enable()
    send(connection, {"ready": onnxruntime.__version__}, {})
    session: Any = None
    while True:
        try:
            message, arrays = receive(connection, _MAX_BYTES)
        except ConnectionEnded:
            return
        results: dict[str, Any] = {}
        try:
            if "model" in arrays:
                session = _load(onnxruntime, arrays["model"].tobytes())
            else:
                outputs = session.run(message["outputs"], arrays)
                results = dict(zip(message["outputs"], outputs, strict=True))
            answer: dict[str, Any] = {}
        except Exception as error:
            release_memory()
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS):
                answer = {"memory": True}
            else:
                answer = {"failed": " ".join(text.split())[:_MAX_REASON]}
        send(connection, answer, results)


def _load(onnxruntime: Any, model: bytes) -> Any:
    """A session on one thread, whose results do not depend on what else the machine does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    # Memory grows with what is asked for, not in powers of two.
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
