"""Where Anthropic takes calls whose answers may wait: its Message Batches.

A batch cannot bear a name of ours, and says whose calls it holds only when it has ended. So a batch
whose id nobody wrote down is looked for among those that are as large and as young; which one it
was shows when it has ended: each custom id holds the id of its parcel.

Source:
    Anthropic's API reference: Message Batches (100,000 requests, 256 MB, half the price; errored,
    cancelled and expired requests are not billed).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from io import BytesIO
from typing import Any
from urllib.parse import quote

from agentflow.errors import ProviderError
from agentflow.llm.deferral import DeskTerms, Found, Parcel, Result, Standing
from agentflow.llm.request import ModelRequest
from agentflow.protocols import AskedPages, ProviderCall
from agentflow.providers.deferral import LARGEST_BYTES, SEND_SECONDS, VendorDesk, is_missing
from agentflow.providers.exchange import SdkProvider

_PATH = "/v1/messages/batches"
_MOST = 100_000
_PAGE = 100
_SKEW_SECONDS = 120  # clocks differ; batches that are older than that are others
_PIECE_BYTES = 65_536
_HEAD, _TAIL = b'{"requests":[', b"]}"


class BatchDesk(VendorDesk):
    """Anthropic's Message Batches: within 24 hours, at half the price."""

    def __init__(self, provider: SdkProvider) -> None:
        terms = DeskTerms(calls=_MOST, bytes=LARGEST_BYTES)
        super().__init__(provider, terms=terms, context={"processing": "batch"})

    def line(self, custom_id: str, request: ModelRequest, call: ProviderCall) -> bytes:
        """Return one request of the batch, with the comma that may follow it."""
        line = {"custom_id": custom_id, "params": self.body(request, call)}
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b","

    async def submit(self, parcel: Parcel, lines: BytesIO) -> str:  # noqa: ARG002
        """Make the batch."""
        size = lines.getbuffer().nbytes - 1  # without the comma behind the last one
        length = len(_HEAD) + size + len(_TAIL)
        headers = {"content-type": "application/json", "content-length": str(length)}
        options = {**self._options(SEND_SECONDS), "headers": headers}
        made = await self._ask("post", _PATH, options, content=_content(lines, size))
        return str(made["id"])

    async def find(self, parcel: Parcel) -> Found:
        """Return the youngest batch that may be the parcel, and is known not to be another's."""
        after: dict[str, object] = {}
        while True:
            page = await self._get(_PATH, limit=_PAGE, **after)
            batches = page.get("data") or []
            for batch in batches:
                if _seconds(batch) < parcel.sent_at_ms / 1000 - _SKEW_SECONDS:
                    return Found()
                if await self._may_be(batch, parcel):
                    return Found(ref=str(batch["id"]))
            if not page.get("has_more") or not batches:
                return Found()
            after = {"after_id": page.get("last_id") or batches[-1]["id"]}

    async def _may_be(self, batch: dict[str, Any], parcel: Parcel) -> bool:
        counts = batch.get("request_counts") or {}
        if str(batch["id"]) in parcel.strangers or sum(counts.values()) != parcel.count:
            return False
        if not batch.get("results_url"):
            return True  # its results will tell
        async for line in self._lines(_results(str(batch["id"]))):
            return parcel.id in str(line.get("custom_id"))
        return False

    async def look(self, ref: str) -> Standing:
        """Return how the batch stands."""
        try:
            batch = await self._get(_place(ref))
        except ProviderError as e:
            if is_missing(e):
                return Standing(is_lost=True)
            raise
        if batch.get("archived_at"):
            return Standing(is_lost=True)
        return Standing(is_done=batch.get("processing_status") == "ended")

    async def results(
        self,
        parcel: Parcel,
        asked: AskedPages,  # noqa: ARG002 -- the vendor keeps the questions
    ) -> AsyncIterator[tuple[str, Result]]:
        """Yield the results of the batch."""
        async for line in self._lines(_results(parcel.ref or "")):
            yield str(line.get("custom_id")), _result(line.get("result") or {})

    def _cancel_path(self, ref: str) -> str:
        return f"{_place(ref)}/cancel"


async def _content(lines: BytesIO, size: int) -> AsyncIterator[bytes]:
    yield _HEAD
    lines.seek(0)
    while size:
        piece = lines.read(min(size, _PIECE_BYTES))
        size -= len(piece)
        yield piece
    yield _TAIL


def _place(ref: str) -> str:
    return f"{_PATH}/{quote(ref, safe='')}"


def _results(ref: str) -> str:
    return f"{_place(ref)}/results"


def _seconds(batch: dict[str, Any]) -> float:
    text = str(batch.get("created_at") or "")
    try:
        made = datetime.fromisoformat(text)
    except ValueError:
        return float("inf")  # as young as can be: it is not left out for its age
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def _result(result: dict[str, Any]) -> Result:
    kind = result.get("type")
    if kind == "succeeded":
        return Result(kind="answer", body=dict(result.get("message") or {}))
    if kind in {"expired", "canceled"}:
        return Result(kind="expired" if kind == "expired" else "cancelled")
    error = result.get("error")
    error = error if isinstance(error, dict) else {"message": str(error)}
    return Result(kind="error", body=error, request_id=error.get("request_id"))
