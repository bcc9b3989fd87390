"""Every named crash point, with what a process that dies there leaves behind.

The crash suite kills a real process at each hit of each of them; a test checks that this list
and the calls of `agentflow.sync_point.sync_point` in the source name the same points.
"""

from __future__ import annotations

SYNC_POINTS: dict[str, str] = {
    # client
    "start.before": "a run is asked for and not written",
    "start.after": "a run is written and its caller does not know",
    "send.before": "a message is made and not written",
    "send.after": "a message is written and its sender does not know",
    "decide.before": "a decision is made and not written",
    "decide.before_message": "the approval is decided, its run is not told yet (one transaction)",
    "decide.after": "a decision is written and its maker does not know",
    "retry.before": "a reopening is asked for and not written",
    "retry.after": "a run is reopened and its caller does not know",
    # worker
    "worker.started": "the file is owned, nothing is claimed",
    "claim.before": "runs are due, none is claimed",
    "claim.after": "runs are claimed, none is loaded",
    "inbox.after_read": "messages are read, not recorded",
    "timer.due": "a timer is due, the run does not know",
    "recovery.after_load": "the history is read",
    "recovery.after_replay": "the code has come back to where it was",
    "recovery.after_doubts": "doubtful calls are known, not recorded",
    "cut.before": "a changed call is to be paid again, the history is not cut",
    "activate.before": "outcomes have arrived, the code has not seen them",
    "activate.after": "the code has run ahead of the log",
    "end.before": "the function has ended, the log does not know",
    "append.before": "a batch is made and not handed to the store",
    "append.after": "a batch is committed, the worker has the answer",
    "append.after_noted": "a batch is committed, its attempts have not started",
    "attempt.before_start": "an intent is committed, its attempt has not started",
    "segment.before_reload": "a new segment is committed, not begun",
    "release.before": "a run is given up in the store, still in memory",
    "child.before_cancel": "a child is to be cancelled and not told",
    # attempts
    "activity.before_call": "an intent is committed, the effect has not begun",
    "activity.after_call": "the effect is done, its outcome is only in memory",
    "outcome.before_delivery": "an outcome is encoded, not delivered",
    "outcome.after_delivery": "an outcome is delivered, not committed",
    "progress.before_delivery": "the provider's handle is known, not delivered",
    "reconcile.before_call": "a doubtful call is about to be looked up",
    "reconcile.after_call": "a doubtful call is settled outside, not in the log",
    "stream.after_delta": "a piece of an answer was shown",
    "llm.before_send": "a model call's intent is committed, nothing is sent",
    "llm.after_ref": "the vendor's handle is handed on",
    "llm.before_resume": "a call in flight is about to be asked for again",
    "llm.after_response": "an answer is here, not priced",
    "provider.before_answer": "a request is sent",
    "provider.after_answer": "an answer is complete, not returned",
    # store
    "migrate.before_commit": "the schema is made, not committed",
    "open.after": "the database is open, nothing is done",
    "own.after_lock": "the file is locked, its owner not set up",
    "commit.before_begin": "a group is taken from the queue",
    "append.after_fence": "rows of runs are updated, their events are not there",
    "append.after_events": "events are there, their bodies are not",
    "append.after_payloads": "bodies are there, messages are not marked",
    "append.before_ledger": "all but the ledger is written",
    "append.after_children": "children are inserted, the parent's batch is not committed",
    "append.after_parent": "a parent is told, its child's end is not committed",
    "inbox.before_wake": "a message is inserted, its run not woken (one transaction)",
    "commit.before": "a group is written, not committed",
    "commit.after": "a group is committed",
    "commit.before_reply": "a group is committed, nobody knows",
    "close.before_checkpoint": "everything is done, the log is not emptied",
    "close.after_checkpoint": "the log is emptied, the file still open",
}
"""What the process leaves behind when it dies at the point, by the point's name."""
