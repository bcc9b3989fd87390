"""`agentflow worker` on a host whose clock is wrong, and may be set while it works.

``CHAOS_CLOCK`` names a file with milliseconds, by how much the clock is ahead; SIGUSR1 has it read
again. Only the wall clock is wrong: no host's monotonic one ever is.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from agentflow.cli.main import main
from agentflow.clock import SystemClock


class WrongClock:
    """A wall clock that is ahead by what a file says."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ahead_ms = 0
        self.set()

    def set(self) -> None:
        """Read the file."""
        self._ahead_ms = int(self._file.read_text())

    def heed(self) -> None:
        """Wait for signals, in a thread: workflow code, where a handler may come, opens no file."""
        while True:
            signal.sigwait({signal.SIGUSR1})
            self.set()

    def now_ms(self) -> int:
        """Return the time that this host believes in."""
        return time.time_ns() // 1_000_000 + self._ahead_ms


if __name__ == "__main__":
    clock = WrongClock(Path(os.environ["CHAOS_CLOCK"]))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # in threads to come, too
    threading.Thread(target=clock.heed, daemon=True).start()
    setattr(SystemClock, "now_ms", lambda _: clock.now_ms())  # noqa: B010 -- a wrong host's
    main()
