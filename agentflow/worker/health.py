"""Probes and metrics over HTTP: ``/healthz``, ``/readyz``, ``/metrics``; nothing else, read only.

Served from the worker's own event loop on purpose: if that hangs, so do the probes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from agentflow.errors import StoreError, UsageError
from agentflow.worker.counts import Counts
from agentflow.worker.metrics import CONTENT_TYPE, Readings, exposition
from agentflow.worker.worker import Worker

_LOG = logging.getLogger("agentflow.worker")
_TEXT = "text/plain; charset=utf-8"
_REQUEST_SECONDS = 5.0
_REQUEST_BYTES = 8_192
_DEPTH_SECONDS = 2.0  # a scrape does not wait longer for the database


class Health:
    """Answers for one worker."""

    def __init__(self, worker: Worker, counts: Counts) -> None:
        self._worker = worker
        self._counts = counts

    async def answer(self, method: str, path: str) -> tuple[HTTPStatus, str, str]:
        """Return status, content type and body."""
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, "only GET\n"
        match path.partition("?")[0]:
            case "/healthz":
                return _verdict(self._why_unhealthy())
            case "/readyz":
                return _verdict(self._why_unhealthy() or self._worker.why_not_ready())
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE, exposition(self._counts, await self._readings())
            case _:
                return HTTPStatus.NOT_FOUND, _TEXT, "there are /healthz, /readyz and /metrics\n"

    def _why_unhealthy(self) -> str:
        error = self._worker.error
        return f"the worker stopped: {error}" if error is not None else ""

    async def _readings(self) -> Readings:
        worker = self._worker
        active, warm = worker.in_memory
        heart = worker.membership.heart
        due: dict[str, int] | None = None
        try:
            due = await asyncio.wait_for(worker.due_by_queue(), _DEPTH_SECONDS)
        except (StoreError, TimeoutError):
            _LOG.warning("queue depth is not known", extra={"worker_id": worker.id})
        return Readings(
            worker_id=worker.id,
            active=active,
            warm=warm,
            concurrency=worker.membership.card.concurrency,
            is_ready=not worker.why_not_ready(),
            lease_age_seconds=heart.age_seconds if heart is not None else None,
            lapses=worker.membership.lapses,
            due=due,
        )

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and hang up."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _REQUEST_SECONDS)
            method, path = (*head.decode("latin-1").split(" ", 2), "", "")[:2]
            status, kind, body = await self.answer(method, path)
            data = body.encode()
            lines = (
                f"HTTP/1.1 {status.value} {status.phrase}",
                f"Content-Type: {kind}",
                f"Content-Length: {len(data)}",
                "Cache-Control: no-store",
                "Connection: close",
            )
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
            writer.write(b"" if method == "HEAD" else data)
            await writer.drain()
        except (TimeoutError, ConnectionError, EOFError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or asks for something else
        finally:
            writer.close()


def _verdict(why_not: str) -> tuple[HTTPStatus, str, str]:
    if why_not:
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{why_not}\n"
    return HTTPStatus.OK, _TEXT, "ok\n"


@asynccontextmanager
async def serving(worker: Worker, counts: Counts, host: str, port: int) -> AsyncIterator[int]:
    """Serve probes and metrics of *worker* inside the block; yield the port.

    Raises:
        UsageError: the address cannot be had.
    """
    health = Health(worker, counts)
    try:
        server = await asyncio.start_server(health.converse, host, port, limit=_REQUEST_BYTES)
    except OSError as e:
        msg = f"probes cannot be answered on {host}:{port}: {e.strerror or e}"
        raise UsageError(msg, hint="Give another port with --health.") from e
    taken = server.sockets[0].getsockname()[1]
    _LOG.info("probes and metrics", extra={"host": host, "port": taken})
    try:
        yield taken
    finally:
        server.close()
