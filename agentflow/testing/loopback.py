"""A model vendor on 127.0.0.1 that speaks OpenAI's and Anthropic's formats, counts, and fails.

In a test:

>>> with LoopbackServer([Answer(text="hello")]) as server:
...     server.url.startswith("http://127.0.0.1:"), server.requests
(True, [])

As a process of its own, which outlives the one under test:
``python -m agentflow.testing.loopback --port 0 --script turns.json`` prints its address. The
script is ``{"turns": [{"text": "…"}, {"calls": [["search", {"query": "…"}]]}]}``, read at the
number of answers that the conversation already has, or ``{"rules": [{"match": "words of the
prompt", "turns": […]}, …]}``. A turn's ``"faults": [{"status": 500}, null]`` meet the first,
second … time that exactly this request is sent.

Only the standard library, so that demos need no test dependency.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from agentflow.dataclass import dataclass
from agentflow.testing.kept_batches import BATCH_PATHS, MAKES_BATCH, BatchDesk, Refused
from agentflow.testing.kept_responses import KeptResponse, StoredCompletion
from agentflow.testing.wire_formats import (
    PATHS,
    Answer,
    Api,
    Fault,
    Seen,
    error_body,
    events,
    token_counts,
    whole,
)

__all__ = ["Answer", "Fault", "LoopbackServer", "Record", "Script", "Seen", "load_script"]

Reply = Answer | Fault | str
Script = Sequence[Reply] | Callable[[Seen], Reply]

_HOST = "127.0.0.1"
_RESPONSES = "/v1/responses/"
_COMPLETIONS = "/v1/chat/completions"
_FILTER = "metadata["
_TICK_SECONDS = 0.005
_LATE = 0.8  # an event is broken behind its name, within its data
_MIDDLE = 0.5  # a disconnect in the middle comes after half of the bytes or events


@dataclass(slots=True, kw_only=True)
class Record:
    """A POST that the server has seen.

    Attributes:
        number: From 1, in the order of arrival.
        path: Where it went.
        model: Model asked for.
        stream: Whether it asked for a stream.
        turns: How many answers its conversation held.
        repeat: How often exactly this body was seen before, from 0.
        key: Its idempotency key.
        test_id: Its ``X-Test-Id`` header.
        outcome: ``pending``, ``answered``, ``aborted`` (the client went away) or ``fault …``.
        billed_tokens: What the vendor would bill for it, whoever got the answer.
        body: Its JSON.
    """

    number: int
    path: str
    model: str = ""
    stream: bool = False
    turns: int = 0
    repeat: int = 0
    key: str = ""
    test_id: str = ""
    outcome: str = "pending"
    billed_tokens: int = 0
    body: dict[str, Any]


class LoopbackServer:
    """The server, in threads of this process.

    Args:
        script: Answers by the number of answers in the conversation, or a function of the
            request. A string is a text answer.
        port: TCP port; 0 takes a free one.
    """

    def __init__(self, script: Script = (), *, port: int = 0) -> None:
        self.script = script
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._seen: Counter[str] = Counter()
        self._kept: dict[str, tuple[KeptResponse, Record]] = {}
        self._looks: list[tuple[str, str]] = []
        self.batches = BatchDesk(self._accept)
        self._stored: list[StoredCompletion] = []
        self._server = _Server((_HOST, port), _Handler)
        self._server.loopback = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="loopback", daemon=True
        )

    @property
    def url(self) -> str:
        """Its address; Anthropic's SDK takes it as it is."""
        return f"http://{_HOST}:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        """Its address as OpenAI's SDK takes it."""
        return f"{self.url}/v1"

    @property
    def requests(self) -> list[Record]:
        """Every POST so far, killed and aborted ones too."""
        with self._lock:
            return list(self._records)

    @property
    def billed_tokens(self) -> int:
        """What the vendor would bill for all requests so far, in tokens."""
        return sum(r.billed_tokens for r in self.requests)

    @property
    def looks(self) -> list[tuple[str, str]]:
        """Every look at a response in the background, as (retrieve, stream or cancel, its id).

        And at stored completions, as (list, the values of the metadata that were asked for).
        """
        with self._lock:
            return list(self._looks)

    @property
    def kept(self) -> list[str]:
        """Ids of the responses in the background, oldest first."""
        with self._lock:
            return list(self._kept)

    def start(self) -> Self:
        """Serve from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving; requests that wait are let go."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def record(self, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> Record:
        """Count a request, before anything is answered."""
        plain = f"{path}\n{json.dumps(body, sort_keys=True)}"
        with self._lock:
            made = Record(
                number=len(self._records) + 1,
                path=path,
                model=str(body.get("model", "")),
                stream=bool(body.get("stream")),
                repeat=self._seen[plain],
                key=headers.get("idempotency-key", ""),
                test_id=headers.get("x-test-id", ""),
                body=body,
            )
            self._seen[plain] += 1
            self._records.append(made)
        return made

    def reset(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._records.clear()
            self._seen.clear()
            self._looks.clear()

    def keep(self, response: KeptResponse, record: Record) -> None:
        """Begin to work on a response in the background."""
        with self._lock:
            self._kept[response.id] = response, record

    def _accept(self, api: Api, custom_id: str, body: dict[str, Any]) -> tuple[Seen, Answer]:
        """Take one request of a batch: it is counted, and billed whoever fetches the answer."""
        path = next(path for path, found in PATHS.items() if found == api)
        record = self.record(path, body, {"idempotency-key": custom_id})
        seen = Seen(api=api, body=body, headers={}, repeat=record.repeat, number=record.number)
        record.turns = seen.turns
        answer = self.reply(seen)
        fault = answer.fault or Fault()
        unbilled = fault.status is not None or fault.expired
        record.outcome = "fault" if unbilled else "answered"
        record.billed_tokens = 0 if unbilled else sum(token_counts(seen, answer))
        return seen, answer

    def finish(self) -> None:
        """Let every response in the background be complete by now, whatever was to delay it."""
        with self._lock:
            for response, _ in self._kept.values():
                response.fault = replace(response.fault, delay_seconds=0.0, pause_seconds=0.0)

    def lose(self) -> None:
        """Forget every response in the background, as a vendor does after its time."""
        with self._lock:
            self._kept.clear()
            self._stored.clear()
        self.batches.lose()

    def store(self, completion: StoredCompletion) -> None:
        """Store a completion; it is listed once it is complete, whoever is connected."""
        with self._lock:
            self._stored.append(completion)

    def listed(self, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
        """Count a look at the stored completions; return those that have this metadata."""
        now = time.monotonic()
        with self._lock:
            self._looks.append(("list", " ".join(wanted.values())))
            return [one.body for one in self._stored if one.is_listed(wanted, now)]

    def look(self, what: str, id: str) -> tuple[KeptResponse, int | None] | None:
        """Count a look at a response; return it, if it is there, and the status to fail with."""
        with self._lock:
            before = sum(found == id for kind, found in self._looks if kind != "cancel")
            self._looks.append((what, id))
            found = self._kept.get(id)
        if found is None:
            return None
        response, record = found
        if what == "cancel":
            record.billed_tokens = response.cancel(time.monotonic())
            return response, None
        statuses = response.fault.looks
        return response, statuses[before] if before < len(statuses) else None

    def reply(self, seen: Seen) -> Answer:
        """Return what the script says to a request."""
        script = self.script
        if callable(script):
            return _answer(script(seen))
        if seen.turns < len(script):
            return _answer(script[seen.turns])
        message = f"the script has {len(script)} turns, number {seen.turns + 1} was asked"
        return Answer(fault=Fault(status=400, body={"error": {"message": message}}))


def _answer(reply: Reply) -> Answer:
    if isinstance(reply, str):
        return Answer(text=reply)
    return Answer(fault=reply) if isinstance(reply, Fault) else reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    loopback: LoopbackServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; other errors are bugs and shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
        """Say nothing: requests are counted instead."""

    def do_GET(self) -> None:
        """Answer what was counted: `/__requests`, filtered by `?key=` or `?test_id=`.

        Or how a response in the background stands, or its events: `/v1/responses/…`; or which
        completions are stored: `/v1/chat/completions`.
        """
        where = urlsplit(self.path)
        if where.path.startswith(_RESPONSES):
            self._look(where.path.removeprefix(_RESPONSES), parse_qs(where.query))
            return
        if where.path.startswith(BATCH_PATHS):
            self._batch("GET", where.path, {k: v[0] for k, v in parse_qs(where.query).items()})
            return
        if where.path == _COMPLETIONS:
            query = parse_qs(where.query)
            wanted = {k[len(_FILTER) : -1]: v[0] for k, v in query.items() if k.startswith(_FILTER)}
            listed = self.server.loopback.listed(wanted)
            self._json(200, {"object": "list", "data": listed, "has_more": False})
            return
        if where.path != "/__requests":
            self._json(404, {"error": {"message": f"nothing at {where.path}"}})
            return
        wanted = {k: v[0] for k, v in parse_qs(where.query).items()}
        found = [
            r
            for r in self.server.loopback.requests
            if all(getattr(r, k, None) == v for k, v in wanted.items())
        ]
        self._json(
            200,
            {
                "count": len(found),
                "billed_tokens": sum(r.billed_tokens for r in found),
                "looks": self.server.loopback.looks,
                "batches": self.server.loopback.batches.count,
                "requests": [_plain(r) for r in found],
            },
        )

    def _look(self, id: str, query: Mapping[str, Sequence[str]]) -> None:
        streams = query.get("stream") == ["true"]
        found = self.server.loopback.look("stream" if streams else "retrieve", id)
        if found is None:
            message = f"Response with id '{id}' not found."
            self._json(404, {"error": {"type": "invalid_request_error", "message": message}})
            return
        response, status = found
        if status is not None:
            if status:
                self._json(status, error_body("responses", status))
            else:
                self._hang_up()
        elif not streams:
            self._json(200, response.state(time.monotonic()))
        elif not response.streamed:
            message = (
                "This response cannot be streamed because it was not created with stream=true."
            )
            self._json(400, {"error": {"type": "invalid_request_error", "message": message}})
        else:
            after = int(query.get("starting_after", ["-1"])[0])
            try:
                self._follow(response, after + 1, None)
            except (ConnectionError, TimeoutError):
                self.close_connection = True

    def _follow(self, response: KeptResponse, first: int, most: int | None) -> None:
        """Send the events of a response in the background from *first* on, *most* at most."""
        self._head(200, "text/event-stream", None)
        sent = 0
        while True:
            now = time.monotonic()
            for name, data in response.ready(now)[first + sent :]:
                if sent == most:
                    return
                self._chunk(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
                sent += 1
            if response.is_over(now):
                break
            if self._wait(_TICK_SECONDS):
                raise ConnectionAbortedError
        self._chunk(b"")

    def do_POST(self) -> None:
        """Count, and answer as the script says."""
        path = urlsplit(self.path).path
        api = PATHS.get(path)
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if path == "/__reset":
            self.server.loopback.reset()
            self._json(200, {})
            return
        if path.startswith(BATCH_PATHS):
            self._batch("POST", path, {}, raw)
            return
        if path.startswith(_RESPONSES) and path.endswith("/cancel"):
            self._cancel(path.removeprefix(_RESPONSES).removesuffix("/cancel"))
            return
        if api is None:
            self._json(404, {"error": {"message": f"nothing at {path}"}})
            return
        headers = {k.lower(): v for k, v in self.headers.items()}
        try:
            body = json.loads(raw)
        except ValueError:  # killed while it was sending
            self.server.loopback.record(path, {}, headers).outcome = "aborted"
            self.close_connection = True
            return
        record = self.server.loopback.record(path, body, headers)
        seen = Seen(api=api, body=body, headers=headers, repeat=record.repeat, number=record.number)
        record.turns = seen.turns
        self._serve(seen, record)

    def _batch(self, method: str, path: str, query: dict[str, str], raw: bytes = b"") -> None:
        """Answer what is about files and batches; a broken hand-over may have been accepted."""
        desk, headers = self.server.loopback.batches, self.headers
        fault = desk.next_fault() if (method, path) in MAKES_BATCH else None
        fault = fault or Fault()
        if fault.disconnect == "before":
            self._hang_up()
            return
        if fault.status is not None:
            self._json(fault.status, error_body("responses", fault.status), fault.headers)
            return
        try:
            kind = headers.get("content-type", "")
            answer = desk.answer(method, path, query, raw, kind)
        except Refused as e:
            self._json(e.status, {"error": {"type": "invalid_request_error", "message": str(e)}})
            return
        if fault.disconnect == "reply":
            self._hang_up()
        elif isinstance(answer, bytes):
            self._head(200, "application/jsonl", len(answer))
            self.wfile.write(answer)
        else:
            self._json(200, answer)

    def _cancel(self, id: str) -> None:
        found = self.server.loopback.look("cancel", id)
        if found is None:
            self._json(404, {"error": {"message": f"Response with id '{id}' not found."}})
        else:
            self._json(200, found[0].state(time.monotonic()))

    def _serve(self, seen: Seen, record: Record) -> None:
        answer = self.server.loopback.reply(seen)
        fault = answer.fault or Fault()
        if fault.status is None and fault.disconnect != "before":
            record.billed_tokens = sum(token_counts(seen, answer))
            if seen.api == "chat" and seen.body.get("store") is True:
                self.server.loopback.store(StoredCompletion(seen, answer, time.monotonic()))
        try:
            if seen.background and fault.status is None and fault.disconnect != "before":
                self._keep(seen, answer, fault, record)
                return
            if fault.delay_seconds and self._wait(fault.delay_seconds):
                raise ConnectionAbortedError
            self._send(seen, answer, fault, record)
        except (ConnectionError, TimeoutError):
            record.outcome = "aborted"
            self.close_connection = True
            return
        if record.outcome == "pending":
            record.outcome = "answered"

    def _keep(self, seen: Seen, answer: Answer, fault: Fault, record: Record) -> None:
        """Accept a response in the background: it goes on whatever becomes of the client."""
        response = KeptResponse(seen, answer, time.monotonic())
        self.server.loopback.keep(response, record)
        record.outcome = f"fault {fault.disconnect}" if fault.disconnect else "answered"
        if fault.disconnect == "reply":
            self._hang_up()
        elif seen.stream:
            events_in_all = len(response.all_events)
            most = max(1, int(events_in_all * _MIDDLE)) if fault.disconnect else None
            self._follow(response, 0, most)
            if most is not None:
                self._hang_up()
        else:
            self._json(200, response.state(time.monotonic()))

    def _send(self, seen: Seen, answer: Answer, fault: Fault, record: Record) -> None:
        if fault.status is not None:
            record.outcome = f"fault {fault.status}"
            body = error_body(seen.api, fault.status) if fault.body is None else fault.body
            self._json(fault.status, body, fault.headers)
        elif fault.disconnect in {"before", "reply"}:
            record.outcome = "fault disconnect"
            self._hang_up()
        elif seen.stream:
            self._stream(seen, answer, fault, record)
        else:
            self._whole(seen, answer, fault, record)

    def _whole(self, seen: Seen, answer: Answer, fault: Fault, record: Record) -> None:
        body = json.dumps(whole(seen, answer)).encode()
        half = body[: int(len(body) * _MIDDLE)]
        if fault.malformed:
            record.outcome = "fault malformed"
            body = half
        self._head(200, "application/json", len(body))
        if fault.disconnect == "middle":
            record.outcome = "fault disconnect"
            self.wfile.write(half)
            self._hang_up()
        else:
            self.wfile.write(body)

    def _stream(self, seen: Seen, answer: Answer, fault: Fault, record: Record) -> None:
        self._head(200, "text/event-stream", None)
        lines = list(_sse(seen, answer))
        if fault.malformed:
            record.outcome = "fault malformed"
            broken = lines[len(lines) // 2]
            lines[len(lines) // 2] = broken[: int(len(broken) * _LATE)] + b"\n\n"
        if fault.disconnect or fault.truncate:
            record.outcome = "fault disconnect" if fault.disconnect else "fault truncate"
            lines = lines[: max(1, int(len(lines) * _MIDDLE))]
        for line in lines:
            if fault.pause_seconds and self._wait(fault.pause_seconds):
                raise ConnectionAbortedError
            self._chunk(line)
        if fault.disconnect:
            self._hang_up()
        else:
            self._chunk(b"")

    def _json(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/html" if isinstance(body, str) else "application/json"
        self._head(status, kind, len(text.encode()), headers)
        self.wfile.write(text.encode())

    def _head(
        self, status: int, kind: str, length: int | None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("x-request-id", "req_loopback")
        self.send_header("request-id", "req_loopback")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is None:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("content-length", str(length))
        self.end_headers()
        self.wfile.flush()

    def _chunk(self, data: bytes) -> None:
        if self._gone():
            raise ConnectionAbortedError
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _wait(self, seconds: float) -> bool:
        """Wait; return whether the client went away, or the server stops."""
        stopping = self.server.loopback.stopping
        for _ in range(max(1, int(seconds / 0.02))):
            if stopping.wait(min(0.02, seconds)) or self._gone():
                return True
        return False

    def _gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _hang_up(self) -> None:
        """Close without a word, as a crashed server does."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _sse(seen: Seen, answer: Answer) -> Iterator[bytes]:
    for name, data in events(seen, answer):
        head = f"event: {name}\n" if name else ""
        yield f"{head}data: {json.dumps(data)}\n\n".encode()
    if seen.api == "chat":
        yield b"data: [DONE]\n\n"


def _plain(record: Record) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name != "body"}


def load_script(source: Mapping[str, Any]) -> Callable[[Seen], Reply]:
    """Return a script from its JSON form; see the head of this module."""
    rules = [(str(r.get("match", "")), r["turns"]) for r in source.get("rules", [])]
    rules.append(("", source.get("turns", [])))

    def reply(seen: Seen) -> Reply:
        turns = next(turns for match, turns in rules if match in seen.text)
        if seen.turns >= len(turns):
            message = f"the script has no turn {seen.turns + 1}"
            return Fault(status=400, body={"error": {"message": message}})
        spec = dict(turns[seen.turns])
        faults = spec.pop("faults", [])
        spec["calls"] = tuple((name, arguments) for name, arguments in spec.get("calls", []))
        answer = Answer(**spec)
        fault = faults[seen.repeat] if seen.repeat < len(faults) else None
        return replace(answer, fault=Fault(**fault)) if fault else answer

    return reply


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM, SIGINT, or (with ``--with-stdin``) the end of standard input."""
    parser = argparse.ArgumentParser(description="A model vendor on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--script", type=Path, help="JSON file; without it, every answer is 'ok'")
    parser.add_argument("--with-stdin", action="store_true", help="end when standard input does")
    chosen = parser.parse_args(arguments)
    script: Script = lambda _: "ok"  # noqa: E731 -- one word
    if chosen.script:
        script = load_script(json.loads(chosen.script.read_text(encoding="utf-8")))
    server = LoopbackServer(script, port=chosen.port).start()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if chosen.with_stdin:
        threading.Thread(target=_follow_stdin, args=(ended,), daemon=True).start()
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    ended.wait()
    server.stop()


def _follow_stdin(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


if __name__ == "__main__":
    main()
