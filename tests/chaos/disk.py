"""A small file system of its own, for a tablespace that can be full; needs the right to mount."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SIZE_BYTES = 256 << 20  # of memory, where it is used: 10,000 runs need an eighth
PAGE_BYTES = 4096
NAME = "agentflow-disk-"
# Waits for the end of its input, which is ours. Whoever has a file open still keeps it: lazily.
WATCHER = 'read -r _; umount --lazy "$1"; rmdir "$1"'


@dataclass(frozen=True)
class SmallDisk:
    """A file system that can be filled.

    Attributes:
        place: A directory for the tablespace, which PostgreSQL may write to.
    """

    place: Path

    @property
    def _filler(self) -> Path:
        return self.place.parent / "filler"

    def fill(self) -> None:
        """Take all the room that is left."""
        with self._filler.open("ab", buffering=0) as file:
            step = 1 << 20
            while step >= PAGE_BYTES:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise
                    step //= 2

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk() -> Iterator[SmallDisk | None]:
    """Yield a small disk, or None where this process may not mount one.

    It has to outlive the server. It is gone afterwards, however this process ends.
    """
    point = Path(tempfile.mkdtemp(prefix=NAME))
    if not _mounted(point):
        point.rmdir()
        yield None
        return
    with subprocess.Popen(
        ["/bin/sh", "-c", WATCHER, "sh", str(point)], stdin=subprocess.PIPE, start_new_session=True
    ):
        place = point / "space"
        place.mkdir(mode=0o700)
        if os.geteuid() == 0:
            found = pwd.getpwnam("nobody")  # as whom a private server runs
            os.chown(place, found.pw_uid, found.pw_gid)
        yield SmallDisk(place)


def _mounted(point: Path) -> bool:
    options = ["-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=755", "tmpfs", str(point)]
    try:
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0
