"""`python -m tests.simulation FIRST COUNT`: simulate seeds, say what is wrong."""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.simulation.simulation import simulate


def main() -> int:
    """Simulate; return how many seeds failed."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    failed = 0
    gc.freeze()  # what is imported stays
    gc.set_threshold(50_000)  # a seed leaves little behind
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for seed in range(first, first + count):
            outcome = simulate(seed, Path(name))
            if "-v" in sys.argv:
                sys.stdout.write("\n".join(outcome.trace) + "\n")
            if outcome.problems:
                failed += 1
                sys.stdout.write(f"seed {seed}: " + "\n  ".join(outcome.problems[:8]) + "\n")
    took = time.monotonic() - began
    sys.stdout.write(f"{count} seeds, {failed} failed, {took:.1f} s\n")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
