"""``python -m tests.chaos SECONDS=300 WORKERS=6``: many workers, one PostgreSQL, all trouble.

Exit code 1 if anything was lost, repeated or wrong, or a limit of time was missed; a full run that
is sound writes docs/chaos.md. SEED= draws other faults. OPEN= is the number of short runs that are
open at once, LONG= of long ones.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agentflow.testing.postgres import private_server
from tests.chaos import report
from tests.chaos.disk import small_disk
from tests.chaos.driver import DEFAULT_SEED, Plan, chaos
from tests.crash.counter import running_counter

SHOWN = 40
FULL_SECONDS = 300.0  # a shorter run writes no page
PAGE = Path(__file__).parents[2] / "docs" / "chaos.md"


def main(arguments: Sequence[str]) -> int:
    """Run one trial; return the exit code."""
    wanted = dict(a.split("=", 1) for a in arguments)
    seconds = float(wanted.get("SECONDS", "300"))
    is_full = seconds >= FULL_SECONDS
    plan = Plan(
        workers=int(wanted.get("WORKERS", "6")),
        seconds=seconds,
        least_runs=report.RUNS if is_full else 0,
        seed=int(wanted.get("SEED", str(DEFAULT_SEED))),
        open_runs=int(wanted.get("OPEN", "36")),
        long_runs=int(wanted.get("LONG", "100")),
    )
    folder = Path(tempfile.mkdtemp(prefix="af-chaos-"))
    with running_counter(folder) as socket, small_disk() as disk, private_server() as server:
        url, outcome = asyncio.run(chaos(plan, server, socket, folder, disk))
        print(report.table(outcome), flush=True)
        wrong = report.wrong(url, outcome)
    late = report.slow(outcome)
    if is_full:
        late += report.few(outcome)
    if is_full and not wrong and not late:
        PAGE.write_text(report.page(outcome))
    for line in [*wrong[:SHOWN], *late]:
        print(f"  {line}")
    print(f"{len(wrong)} wrong, {len(late)} limits missed; logs: {folder}")
    return 1 if wrong or late else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
