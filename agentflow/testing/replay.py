"""Does today's code still fit what is recorded? `assert_replays`, the deploy gate as a test.

    def test_old_runs_still_replay():
        assert_replays("histories/research-1.jsonl", research)

The file is what ``agentflow export RUN`` writes.
"""

from __future__ import annotations

import base64
import json
import random  # noqa: TID251 -- the engine's own streams, seeded by the run
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from agentflow.clock import from_ms
from agentflow.codec import Bodies, Codec, MessageNode, NoBodies, Parts
from agentflow.dataclass import dataclass
from agentflow.engine.context import RandomStream, RunInfo
from agentflow.engine.definitions import Workflow
from agentflow.engine.rehearsal import Rehearsal, rehearse
from agentflow.errors import UsageError
from agentflow.history import events as ev
from agentflow.history.audit import GENESIS, event_hash
from agentflow.history.history import history_of
from agentflow.testing.bodies import LoadedBodies


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recorded run outside of a store.

    Attributes:
        run_id: The run's id.
        project: Its project.
        workflow: Name of its workflow.
        events: Its events from seq 1.
        applied_seq: Highest seq whose drain committed its intents.
        bodies: Bodies of its payloads.
        tags: Its tags.
    """

    run_id: str
    project: str
    workflow: str
    events: tuple[ev.AnyEvent, ...]
    applied_seq: int
    bodies: Bodies = field(default_factory=NoBodies)
    tags: tuple[str, ...] = ()


class ReplayError(AssertionError):
    """Today's code does not do what is recorded."""


def assert_replays(
    recorded: str | Path | Recording | Sequence[ev.AnyEvent],
    workflow: Workflow[..., Any],
    *,
    codec: Codec | None = None,
    bodies: Bodies | None = None,
) -> None:
    """Raise ReplayError unless the recorded run replays through *workflow*.

    Nothing is started and nothing is written. A run that has ended must end the same way, with
    the same result; one that goes on must wait for the same.

    Args:
        recorded: A JSONL file as ``agentflow export`` writes it, a `Recording`, or the events of
            `Run.history()`.
        workflow: Today's code.
        codec: Reads payloads; the default reads plain ones.
        bodies: With events: where payloads of more than 256 bytes are, such as `Flow.store`.

    Raises:
        ReplayError: the code diverges; the message has the difference.
    """
    recording = _recording(recorded, bodies)
    codec = codec or Codec()
    rehearsal = rehearse_recording(recording, workflow, codec)
    try:
        found = _differences(rehearsal, recording, workflow, codec)
    finally:
        rehearsal.machine.evict()
    if found:
        raise ReplayError(f"run {recording.run_id}: " + "\n".join(found))


def _recording(
    recorded: str | Path | Recording | Sequence[ev.AnyEvent], bodies: Bodies | None
) -> Recording:
    if isinstance(recorded, Recording):
        return recorded
    if isinstance(recorded, (str, Path)):
        return read_recording(Path(recorded))
    first = recorded[0] if recorded else None
    if not isinstance(first, ev.RunStarted):
        msg = "a history begins with RunStarted"
        raise UsageError(msg, hint="Pass every event: `await run.history()`.")
    return Recording(
        run_id="", project="default", workflow=first.workflow, events=tuple(recorded),
        applied_seq=recorded[-1].seq, bodies=bodies or NoBodies(),
    )  # fmt: skip


def read_recording(path: Path) -> Recording:
    """Return the run that a JSONL file holds.

    Raises:
        UsageError: it is no export, or its hashes do not follow from its rows.
    """
    with path.open() as lines:
        return recording_of([json.loads(line) for line in lines if line.strip()])


def recording_of(lines: Sequence[Mapping[str, Any]]) -> Recording:
    """Return the run of an export's lines; its hash chain is checked."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        tables.setdefault(str(line.get("table")), []).append(line)
    heads = tables.get("runs", [])
    if len(heads) != 1:
        msg = "an export has one line for its run"
        raise UsageError(msg, hint="Write it with `agentflow export RUN`.")
    head = heads[0]
    rows = tables.get("events", [])
    _check_chain(rows)
    return Recording(
        run_id=head["id"],
        project=head["project"],
        workflow=head["workflow"],
        events=tuple(_event(row) for row in rows),
        applied_seq=head["applied_seq"],
        bodies=LoadedBodies(
            {_bytes(row["digest"]): _bytes(row["body"]) for row in tables.get("bodies", [])},
            {n.id: n for n in map(_node, tables.get("nodes", []))},
        ),
        tags=tuple(json.loads(head["tags"])) if head.get("tags") else (),
    )


def _event(row: Mapping[str, Any]) -> ev.AnyEvent:
    body = _bytes(row["body"]) if row["body"] is not None else None
    names = ("seq", "time_ms", "actor", "key", "data")
    return ev.event_from(row["kind"], body=body, **{name: row[name] for name in names})


def _node(row: Mapping[str, Any]) -> MessageNode:
    parent = _bytes(row["parent"]) if row["parent"] is not None else None
    return MessageNode(_bytes(row["id"]), parent, _bytes(row["digest"]))


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _check_chain(rows: Iterable[Mapping[str, Any]]) -> None:
    before = GENESIS
    for row in rows:
        facts = {name: row[name] for name in ("seq", "time_ms", "kind", "actor", "key", "data")}
        before = event_hash(before, **facts)
        if before != _bytes(row["hash"]):
            msg = f"the export was altered at event {row['seq']}"
            raise UsageError(msg)


def rehearse_recording(
    recording: Recording,
    workflow: Workflow[..., Any],
    codec: Codec,
    random_of: Any = None,
) -> Rehearsal:
    """Replay a recorded run through *workflow*; evict its machine when done."""
    history = history_of(recording.events)
    info = RunInfo(
        id=recording.run_id, project=recording.project, workflow=recording.workflow,
        started_at=from_ms(history.started.time_ms), tags=recording.tags,
    )  # fmt: skip
    return rehearse(
        workflow, history, info, applied_seq=recording.applied_seq, codec=codec,
        bodies=recording.bodies, random_of=random_of or stream_of,
    )  # fmt: skip


def stream_of(seed: bytes) -> RandomStream:
    """Return the stream of draws that every engine makes of *seed*."""
    return random.Random(seed)


_KINDS: dict[type[ev.AnyEvent], str] = {
    ev.RunCompleted: "completed",
    ev.RunFailed: "failed",
    ev.RunCancelled: "cancelled",
}


def _differences(
    rehearsal: Rehearsal,
    recording: Recording,
    workflow: Workflow[..., Any],
    codec: Codec,
) -> list[str]:
    if rehearsal.parking is not None:
        return [rehearsal.parking.error]
    found = [f"it asks for more: {type(e).__name__} {e.key or ''}" for e in rehearsal.batch.facts]
    last, ending = recording.events[-1], rehearsal.machine.ending
    recorded = _KINDS.get(type(last))
    if recorded is None:
        return found
    ended = ending.kind if ending is not None else "not at all"
    if ended != recorded:
        found.append(f"it ends {ended}; recorded is {recorded}")
    elif ending is not None and isinstance(last, ev.RunCompleted) and last.payload is not None:
        value = codec.encode(ending.value, workflow.returns, Parts(), what="result")
        if value.digest != last.payload.digest:
            was = codec.plain(last.payload, recording.bodies).decode()
            found.append(f"it returns {ending.value!r}; recorded is {was}")
    return found
