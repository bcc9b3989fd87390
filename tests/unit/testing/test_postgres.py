"""The private server of tests."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

postgres = pytest.importorskip("agentflow.testing.postgres", exc_type=ImportError)

pytestmark = pytest.mark.postgres

START = """
import sys
from agentflow.testing.postgres import private_server
with private_server() as server:
    print(server._directory, server.process.pid, flush=True)
    sys.stdin.read()
"""


def is_alive(pid: int) -> bool:
    """Return whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_private_server_does_not_outlive_its_tests() -> None:
    """Not even if they are killed with SIGKILL; its directory goes too."""
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL for tests")
    with subprocess.Popen(
        [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout is not None
        directory, pid = tests.stdout.readline().split()
        assert is_alive(int(pid))
        tests.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while (is_alive(int(pid)) or Path(directory).exists()) and time.monotonic() < until:
        select.select([], [], [], 0.05)

    assert not is_alive(int(pid))
    assert not Path(directory).exists()
