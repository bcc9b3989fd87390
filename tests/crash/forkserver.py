"""A parent that has imported everything and forks a child per trial, before any thread.

``python -m tests.crash.forkserver`` reads specs as JSON lines and answers each with a line.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.crash.child import Spec, perform

END_SECONDS = 30.0  # a server without work ends at once
_ROOT = Path(__file__).parents[2]
_PRELOAD = (
    "agentflow.storage.store",
    "agentflow.storage.dialects.postgres",
    "agentflow.storage.dialects.sqlite",
    "agentflow.ledger.prices",
    "agentflow.providers.scripted",
)


@dataclass(frozen=True)
class Reply:
    """How a child ended.

    Attributes:
        killed: Whether SIGKILL ended it.
        hung: Whether it had to be ended because it took too long.
        report: What it said, if it got there.
        error: Its traceback, if it raised.
    """

    killed: bool
    hung: bool = False
    report: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class ForkServer:
    """A handle of one fork server; one trial at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            text=True,
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(END_SECONDS)
        self._process.stdout.close()

    def run(self, spec: Spec) -> Reply:
        """Fork a child for *spec* and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(spec)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            msg = "the fork server died"
            raise RuntimeError(msg)
        return Reply(**json.loads(line))


def main() -> None:
    """Serve until standard input ends."""
    for name in _PRELOAD:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        reply = _fork(Spec(**json.loads(line)))
        sys.stdout.write(json.dumps(asdict(reply)) + "\n")
        sys.stdout.flush()


def _fork(spec: Spec) -> Reply:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(spec, writer)
    os.close(writer)
    started = time.monotonic()
    kill_at = started + (spec.kill_after_seconds or spec.patience_seconds)
    data = b""
    cut = False
    while True:
        left = kill_at - time.monotonic()
        if left <= 0 and not cut:
            cut = True
            os.kill(pid, signal.SIGKILL)
        ready, _, _ = select.select([reader], [], [], max(left, 0) if not cut else None)
        if ready:
            chunk = os.read(reader, 1 << 16)
            if not chunk:
                break
            data += chunk
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    said = json.loads(data) if data and not killed else {}
    return Reply(
        killed=killed,
        hung=cut and not spec.kill_after_seconds,
        report=said.get("report", {}),
        error=said.get("error", "" if said or killed else f"the child ended with {status}"),
    )


def _child(spec: Spec, writer: int) -> None:
    said: dict[str, Any] = {}
    try:
        log = os.open(f"{spec.database}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        os.dup2(log, 2)
        os.dup2(log, 1)
        said["report"] = perform(spec)
    except BaseException:  # noqa: BLE001 -- told to the parent
        said["error"] = traceback.format_exc()
    finally:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(said).encode())
        os._exit(0)


if __name__ == "__main__":
    main()
