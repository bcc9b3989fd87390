"""The start of a run at a due time of its schedule: who fires it makes no difference."""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

from agentflow import ids
from agentflow.codec import Parts
from agentflow.engine.definitions import Workflow
from agentflow.engine.limits import recorded_limits
from agentflow.history import events as ev
from agentflow.stored import Firing, Message, NewRun
from agentflow.timetable import Decision, Schedule, run_id

AnyWorkflow = Workflow[..., Any]


def firing_of(
    one: Schedule, decision: Decision, *, now_ms: int, workflow: AnyWorkflow | None
) -> Firing:
    """Return what is to be written for a decision, all of it or nothing.

    Args:
        one: The schedule as it was when the decision was made.
        decision: What is to happen.
        now_ms: The time.
        workflow: What the runs are runs of, where it is known here: its version, its limits.
    """
    new = tuple(start_of(one, due, now_ms=now_ms, workflow=workflow) for due in decision.starts)
    cancel = None
    if decision.cancel and one.last_run_id is not None:
        cancel = Message(
            id=f"schedule:{one.name}:{decision.buffered_due_ms}", kind="cancel",
            name="its schedule is due again", actor=f"schedule:{one.name}",
        )  # fmt: skip
    after = replace(
        one,
        next_due_ms=decision.next_due_ms,
        last_due_ms=decision.starts[-1] if new else one.last_due_ms,
        last_run_id=new[-1].id if new else one.last_run_id,
        buffered_due_ms=decision.buffered_due_ms,
        started=one.started + len(new),
        skipped=one.skipped + decision.skipped,
        missed=one.missed + decision.missed,
    )
    return Firing(after=after, starts=new, cancel=cancel, last_run_id=one.last_run_id)


def start_of(one: Schedule, due_ms: int, *, now_ms: int, workflow: AnyWorkflow | None) -> NewRun:
    """Return the run of a due time."""
    started = ev.RunStarted(
        time_ms=now_ms, actor=f"schedule:{one.name}", payload=one.payload, workflow=one.workflow,
        seed=ids.new_message_id(), workflow_version=workflow.version if workflow else "",
        python_version=platform.python_version(), logic_flags=[],
        limits=recorded_limits(workflow.limits if workflow else None, start_ms=now_ms),
    )  # fmt: skip
    return NewRun(
        project=one.project, id=run_id(one.name, due_ms), workflow=one.workflow, started=started,
        parts=Parts(), tags=one.tags, queue=one.queue, priority=one.priority,
        concurrency_key=one.concurrency_key, limits=one.limits,
    )  # fmt: skip
