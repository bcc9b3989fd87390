"""Batches that the loopback server works on: OpenAI's files and batches, Anthropic's own.

Nothing runs: how far a batch is follows from the time, so it goes on whoever dies. What is accepted
is billed, item by item, whoever fetches the results.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import field
from datetime import UTC, datetime
from typing import Any

from agentflow.dataclass import dataclass
from agentflow.testing.wire_formats import PATHS, Answer, Api, Fault, Seen, error_body, whole

BATCH_PATHS = ("/v1/files", "/v1/batches", "/v1/messages/batches")
MAKES_BATCH = frozenset({("POST", "/v1/batches"), ("POST", "/v1/messages/batches")})
_OPENAI, _ANTHROPIC = "/v1/batches", "/v1/messages/batches"

Accept = Callable[[Api, str, dict[str, Any]], tuple[Seen, Answer]]


class Refused(Exception):  # noqa: N818 -- reads as what happened
    """The vendor does not do it.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True, kw_only=True)
class KeptBatch:
    """One batch.

    Attributes:
        items: (custom id, request, answer), in order.
        done_at: When it is done, seconds of the monotonic clock.
        cancelled: Whether it was cancelled before that.
    """

    id: str
    api: Api
    items: list[tuple[str, Seen, Answer]]
    created_at: float
    done_at: float
    metadata: dict[str, str] = field(default_factory=dict)
    cancelled: bool = False

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self.cancelled or time.monotonic() >= self.done_at

    def results(self) -> Iterator[tuple[str, Seen, Answer, str]]:
        """Yield (custom id, request, answer, what became of it)."""
        for custom_id, seen, answer in self.items:
            fault = answer.fault or Fault()
            what = "expired" if fault.expired else "succeeded"
            what = "errored" if fault.status is not None else what
            yield custom_id, seen, answer, "canceled" if self.cancelled else what


class BatchDesk:
    """Takes batches.

    Args:
        accept: Counts and answers one request of a batch.

    Attributes:
        seconds: How long a batch takes.
        faults: What goes wrong with the first, second … hand-over of a batch; None = nothing.
        looks: Number of times that somebody asked how a batch stands.
        rejects: Why OpenAI refuses each batch after it has read it, as (code, message).
    """

    def __init__(self, accept: Accept) -> None:
        self.seconds = 0.0
        self.faults: list[Fault | None] = []
        self.rejects: tuple[str, str] | None = None
        self._accept = accept
        self._lock = threading.Lock()
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, KeptBatch] = {}
        self._seen = 0
        self.looks = 0

    @property
    def count(self) -> int:
        """Number of batches that were made."""
        with self._lock:
            return len(self._batches)

    @property
    def all(self) -> list[KeptBatch]:
        """The batches, oldest first."""
        with self._lock:
            return list(self._batches.values())

    def next_fault(self) -> Fault | None:
        """Return what goes wrong with the hand-over of a batch that comes now."""
        with self._lock:
            self._seen += 1
            return self.faults[self._seen - 1] if self._seen <= len(self.faults) else None

    def lose(self) -> None:
        """Forget every batch."""
        with self._lock:
            self._batches.clear()

    def answer(
        self, method: str, path: str, query: dict[str, str], raw: bytes, content_type: str
    ) -> dict[str, Any] | bytes:
        """Return the answer to a request.

        Raises:
            Refused: there is none.
        """
        base = next(p for p in (_ANTHROPIC, _OPENAI, "/v1/files") if path.startswith(p))
        rest = [part for part in path.removeprefix(base).split("/") if part]
        if base == "/v1/files":
            return self._file(method, rest, raw, content_type)
        if not rest:
            return self._made(base, raw) if method == "POST" else self._listed(base, query)
        batch = self._batches.get(rest[0])
        if batch is None:
            raise Refused(404, f"No batch found with id '{rest[0]}'.")
        if rest[1:] == ["cancel"]:
            batch.cancelled = batch.cancelled or not batch.is_done
        elif rest[1:] == ["results"]:
            if not batch.is_done:
                raise Refused(404, "the results are not there yet")
            return _anthropic_lines(batch)
        self.looks += 1
        return self._shown(batch)

    def _file(
        self, method: str, rest: list[str], raw: bytes, content_type: str
    ) -> dict[str, Any] | bytes:
        if method == "POST":
            with self._lock:
                id_ = f"file-{len(self._files) + 1}"
                self._files[id_] = _uploaded(raw, content_type)
            return {"id": id_, "object": "file", "purpose": "batch", "bytes": len(raw)}
        found = self._files.get(rest[0])
        if found is None or rest[1:] != ["content"]:
            raise Refused(404, f"No such File object: {rest[0]}")
        return found

    def _made(self, base: str, raw: bytes) -> dict[str, Any]:
        body = json.loads(raw)
        if base == _ANTHROPIC:
            wanted = [(one["custom_id"], one["params"]) for one in body["requests"]]
            api: Api = "messages"
        else:
            lines = self._files[body["input_file_id"]].splitlines()
            wanted = [(line["custom_id"], line["body"]) for line in map(json.loads, lines)]
            api = PATHS[body["endpoint"]]
            if len({one["model"] for _, one in wanted}) > 1:
                raise Refused(400, "a batch is for one model")
        if len({custom_id for custom_id, _ in wanted}) != len(wanted):
            raise Refused(400, "custom_id must be unique")
        items = [(name, *self._accept(api, name, one)) for name, one in wanted]
        now = time.monotonic()
        with self._lock:
            prefix = "msgbatch" if base == _ANTHROPIC else "batch"
            batch = KeptBatch(
                id=f"{prefix}_{len(self._batches) + 1}",
                api=api,
                items=items,
                created_at=time.time_ns() / 1e9,
                done_at=now + self.seconds,
                metadata=body.get("metadata") or {},
            )
            self._batches[batch.id] = batch
        return self._shown(batch)

    def _listed(self, base: str, query: dict[str, str]) -> dict[str, Any]:
        is_anthropic = base == _ANTHROPIC
        found = [b for b in reversed(self.all) if (b.api == "messages") == is_anthropic]
        after = query.get("after_id" if is_anthropic else "after")
        if after:
            found = found[[b.id for b in found].index(after) + 1 :]
        limit = int(query.get("limit", "20"))
        page = found[:limit]
        return {
            "data": [self._shown(b) for b in page],
            "has_more": len(found) > limit,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }

    def _shown(self, batch: KeptBatch) -> dict[str, Any]:
        if batch.api == "messages":
            return _anthropic(batch)
        shown = _openai(batch)
        if self.rejects is not None:
            code, message = self.rejects
            errors = {"object": "list", "data": [{"code": code, "message": message}]}
            return {**shown, "status": "failed", "errors": errors, "output_file_id": None}
        if batch.is_done:
            good, bad = _openai_lines(batch)
            for name, lines in (("output_file_id", good), ("error_file_id", bad)):
                if lines:
                    self._files[f"file-{batch.id}-{name}"] = lines
                    shown[name] = f"file-{batch.id}-{name}"
        return shown


def _uploaded(raw: bytes, content_type: str) -> bytes:
    """Return the file of a multipart form."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    for part in raw.split(b"--" + boundary):
        head, _, body = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return body.removesuffix(b"\r\n")
    raise Refused(400, "there is no file")


def _openai(batch: KeptBatch) -> dict[str, Any]:
    expired = any(what == "expired" for *_, what in batch.results())
    status = "expired" if expired else "completed"
    status = "cancelled" if batch.cancelled else status
    path = next(path for path, api in PATHS.items() if api == batch.api)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": path,
        "status": status if batch.is_done else "in_progress",
        "created_at": int(batch.created_at),
        "completion_window": "24h",
        "metadata": batch.metadata,
        "output_file_id": None,
        "error_file_id": None,
    }


def _openai_lines(batch: KeptBatch) -> tuple[bytes, bytes]:
    good, bad = [], []
    for custom_id, seen, answer, what in batch.results():
        line: dict[str, Any] = {
            "id": f"batch_req_{custom_id[-8:]}",
            "custom_id": custom_id,
            "response": None,
            "error": None,
        }
        if what == "succeeded":
            answered = {"status_code": 200, "request_id": "req_loopback"}
            good.append({**line, "response": {**answered, "body": whole(seen, answer)}})
        elif what == "errored":
            status = (answer.fault or Fault()).status or 500
            body = error_body(seen.api, status)
            response = {"status_code": status, "request_id": "req_loopback", "body": body}
            bad.append({**line, "response": response})
        else:
            code = "batch_expired" if what == "expired" else "batch_cancelled"
            bad.append({**line, "error": {"code": code, "message": f"the batch is {what}"}})
    return _lines(good), _lines(bad)


def _anthropic(batch: KeptBatch) -> dict[str, Any]:
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    for *_, what in batch.results():
        counts[what if batch.is_done else "processing"] += 1
    moment = datetime.fromtimestamp(batch.created_at, tz=UTC)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if batch.is_done else "in_progress",
        "request_counts": counts,
        "created_at": moment.isoformat().replace("+00:00", "Z"),
        "ended_at": None,
        "archived_at": None,
        "results_url": f"/v1/messages/batches/{batch.id}/results" if batch.is_done else None,
    }


def _anthropic_lines(batch: KeptBatch) -> bytes:
    lines = []
    for custom_id, seen, answer, what in batch.results():
        result: dict[str, Any] = {"type": what}
        if what == "succeeded":
            message = whole(seen, answer)
            message["usage"] = {**message["usage"], "service_tier": "batch"}
            result["message"] = message
        elif what == "errored":
            result["error"] = error_body("messages", (answer.fault or Fault()).status or 500)
        lines.append({"custom_id": custom_id, "result": result})
    return _lines(lines)


def _lines(values: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)
