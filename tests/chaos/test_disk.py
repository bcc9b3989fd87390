"""The small disk: full when it is told to be, and never left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos import disk as disk_module
from tests.chaos.disk import small_disk

HOLDER = """
import sys
from tests.chaos.disk import small_disk
with small_disk() as disk:
    print(disk.place.parent if disk else "", flush=True)
    sys.stdin.read()
"""
LONGEST_SECONDS = 20.0


def is_mounted(point: Path) -> bool:
    """Return whether there is a file system at *point*."""
    return f" {point} " in Path("/proc/mounts").read_text()


def test_a_small_disk_is_filled_and_freed_and_gone() -> None:
    """What does not fit is refused; afterwards nothing is mounted."""
    with small_disk() as disk:
        if disk is None:
            pytest.skip("nobody may mount a file system here")
        file = disk.place / "page"
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            file.write_bytes(b"x")
        disk.free()
        file.write_bytes(b"x")

    assert not disk.place.exists()
    assert not is_mounted(disk.place.parent)


def test_a_small_disk_is_gone_after_sigkill() -> None:
    """Nobody who is killed leaves a mount behind."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        point = process.stdout.readline().strip()
        assert not point or is_mounted(Path(point))
        process.kill()
    if not point:
        pytest.skip("nobody may mount a file system here")

    until = time.monotonic() + LONGEST_SECONDS
    while is_mounted(Path(point)) or Path(point).exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_where_nobody_may_mount_there_is_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is left out then, and the report says so."""
    monkeypatch.setattr(disk_module, "_mounted", lambda _: False)

    with small_disk() as disk:
        assert disk is None
