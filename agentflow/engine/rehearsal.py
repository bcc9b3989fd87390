"""Run code against a recorded history with no side effect: queries, and the deploy gate."""

from __future__ import annotations

from collections.abc import Callable

from agentflow.codec import Bodies, Codec
from agentflow.dataclass import dataclass
from agentflow.engine.commands import Batch
from agentflow.engine.context import RandomStream, RunInfo
from agentflow.engine.definitions import Workflow
from agentflow.engine.ending import Parking
from agentflow.engine.replay import CutNeeded, Machine
from agentflow.history.history import History


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What replaying a history came to.

    Attributes:
        machine: The run in memory; evict it when done.
        parking: Where and why the code diverges from the history, or None.
        batch: What the code would ask for next.
    """

    machine: Machine
    parking: Parking | None
    batch: Batch


def rehearse(
    workflow: Workflow[..., object],
    history: History,
    info: RunInfo,
    *,
    applied_seq: int,
    codec: Codec,
    bodies: Bodies,
    random_of: Callable[[bytes], RandomStream],
) -> Rehearsal:
    """Replay *history* through *workflow*; nothing is started and nothing is written."""
    machine = Machine(
        workflow,
        history,
        info,
        applied_seq=applied_seq,
        next_seq=history.last_seq + 1,
        codec=codec,
        bodies=bodies,
        random_of=random_of,
    )
    try:
        machine.replay(history.effective[-1].time_ms)
    except CutNeeded as wanted:
        machine.park("needs_version", f"event {wanted.at_seq + 1} would be called again")
    return Rehearsal(machine=machine, parking=machine.parking, batch=machine.take_batch())
