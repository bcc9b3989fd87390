"""The outside world: a process of its own that counts effects and is never killed.

``python -m tests.crash.counter SOCKET`` serves JSON lines on a Unix socket until its standard
input ends. It imports nothing of agentflow.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Counter:
    """What the server remembers: per trial, everything that happened, in order."""

    def __init__(self) -> None:
        self.trials: dict[str, list[dict[str, Any]]] = {}
        self.newest: dict[tuple[str, str], int] = {}  # epoch, by trial and run

    def answer(self, asked: dict[str, Any]) -> Any:
        """Do one request."""
        trial = self.trials.setdefault(asked["trial"], [])
        match asked["op"]:
            case "list":
                return trial
            case "forget":
                del self.trials[asked["trial"]]
            case "done":
                ended = [e for e in trial if e["op"] == "end" and e["idem"] == asked["idem"]]
                return ended[-1]["value"] if ended else None
            case "act":  # as a service that heeds fencing tokens: no older owner after a newer one
                newest = self.newest.setdefault((asked["trial"], asked["run"]), asked["epoch"])
                is_late = asked["epoch"] < newest
                self.newest[asked["trial"], asked["run"]] = max(newest, asked["epoch"])
                seen = {k: v for k, v in asked.items() if k != "trial"}
                at_ms = time.time_ns() // 1_000_000
                trial.append({**seen, "op": "late" if is_late else "begin", "at_ms": at_ms})
                return not is_late
            case "ask":  # as a vendor that counts by its own clock
                trial.append(
                    {**{k: v for k, v in asked.items() if k != "trial"}, "at": time.monotonic()}
                )
            case "noted":
                return sum(e["op"] == "note" and e["name"] == asked["name"] for e in trial)
            case "acked":
                return [e["what"] for e in trial if e["op"] == "ack"]
            case _:
                trial.append({k: v for k, v in asked.items() if k != "trial"})
        return None


def serve(path: str) -> None:
    """Serve until standard input ends."""
    counter = Counter()
    poll = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    poll.register(listener, selectors.EVENT_READ)
    poll.register(sys.stdin, selectors.EVENT_READ)
    pending: dict[socket.socket, bytes] = {}
    print("ready", flush=True)
    while True:
        for key, _ in poll.select():
            found = key.fileobj
            if found is listener:
                connection, _ = listener.accept()
                pending[connection] = b""
                poll.register(connection, selectors.EVENT_READ)
            elif isinstance(found, socket.socket):
                if not _converse(counter, found, pending):
                    poll.unregister(found)
                    pending.pop(found)
                    found.close()
            else:
                return


def _converse(
    counter: Counter, connection: socket.socket, pending: dict[socket.socket, bytes]
) -> bool:
    """Answer what has come; False at its end. A line that a killed process cut off is dropped."""
    try:
        data = connection.recv(65536)
        *lines, pending[connection] = (pending[connection] + data).split(b"\n")
        for line in lines:
            reply = json.dumps(counter.answer(json.loads(line))).encode() + b"\n"
            connection.sendall(reply)
    except (ConnectionError, BrokenPipeError):
        return False
    return bool(data)


class Outside:
    """A process's line to the counter. One request at a time, from any thread.

    Args:
        path: The server's socket.
        trial: Name of the trial, which scopes all that is counted.
    """

    def __init__(self, path: str, trial: str) -> None:
        self._path = path
        self.trial = trial
        self._socket: socket.socket | None = None
        self._file: Any = None
        self._lock = threading.Lock()

    def ask(self, op: str, **facts: Any) -> Any:
        """Send one request and return the answer; it is counted when this returns."""
        with self._lock:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.connect(self._path)
                self._file = self._socket.makefile("rb")
            line = json.dumps({"op": op, "trial": self.trial, **facts}).encode()
            self._socket.sendall(line + b"\n")
            return json.loads(self._file.readline())

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._file.close()
            self._socket.close()
            self._socket = None


@contextmanager
def running_counter(folder: Path) -> Iterator[str]:
    """Yield the socket of a counter in a process of its own."""
    path = folder / "counter.sock"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.counter", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        try:
            yield str(path)
        finally:
            process.stdin.close()
            process.wait(10)


if __name__ == "__main__":
    serve(sys.argv[1])
