"""What every measured process shares: one line of JSON out, and where its numbers come from."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Meter:
    """Wall and CPU time between two points of a process.

    >>> meter = Meter()
    >>> sorted(meter.read(count=10))
    ['cpu_us', 'wall_us']
    """

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = cpu_seconds()

    def read(self, *, count: int) -> dict[str, float]:
        """Return wall and CPU time of all threads since the start, microseconds per item."""
        wall = time.perf_counter() - self._wall
        cpu = cpu_seconds() - self._cpu
        return {"wall_us": wall / count * 1e6, "cpu_us": cpu / count * 1e6}


def cpu_seconds() -> float:
    """Return user plus system time of this process, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_mb() -> float:
    """Return resident memory now, in MB of 10^6 bytes (Linux; elsewhere the peak)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_mb()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """Return the highest resident memory so far, in MB of 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def age_seconds() -> float:
    """Return the seconds since this process was started (its parent says when, by wall clock)."""
    return time.time() - float(os.environ["BENCH_STARTED_AT"])


def disk_bytes(path: Path) -> int:
    """Return the size of a database with its log, in bytes."""
    names = (path, path.with_name(path.name + "-wal"))
    return sum(name.stat().st_size for name in names if name.exists())


def arguments(**defaults: Any) -> argparse.Namespace:
    """Return the command line: ``--db FILE`` and one option per default, of its type."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--db", type=Path, required=True)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def report(**numbers: Any) -> None:
    """Print the numbers of this process for the runner."""
    print(json.dumps(numbers), flush=True)


def median(values: list[float]) -> float:
    """Return the median (0 for none): statistics would cost 10 ms of import in a cold start."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2 if ordered else 0.0
