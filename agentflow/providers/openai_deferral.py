"""Where OpenAI takes calls whose answers may wait: its Batch API, and completion windows.

Source:
    OpenAI's API reference: Batch (50,000 requests, 200 MB, one model and one endpoint a file;
    results and errors in two files; ``batch_expired`` is not billed) and ``background_options``
    of Responses (``2h`` and ``8h``: discounted, with ``background``, standard tier, no stream).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO
from typing import Any
from urllib.parse import quote

from agentflow.errors import ProviderError
from agentflow.llm.deferral import DeskTerms, Found, Parcel, Result, Standing
from agentflow.llm.request import ModelRequest
from agentflow.protocols import AskedPages, ProviderCall
from agentflow.providers.deferral import LARGEST_BYTES, SEND_SECONDS, VendorDesk, is_missing
from agentflow.providers.exchange import SdkProvider

_MOST = 50_000
_OURS = "agentflow_parcel"  # in the batch's metadata, by which it is found again
_PAGE = 100
_SKEW_SECONDS = 600  # clocks differ; batches that are older than that are others
_OVER = frozenset({"completed", "expired", "cancelled"})
_OPEN = frozenset({"queued", "in_progress"})
_BUSY = frozenset({"token_limit_exceeded", "rate_limit_exceeded"})
_EXPIRED = "batch_expired"
_CANCELLED = "batch_cancelled"
_OK = 200


class BatchDesk(VendorDesk):
    """OpenAI's Batch API: within 24 hours, at half the price.

    Args:
        provider: The adapter whose calls it takes.
        endpoint: Where a call would go by itself.
    """

    def __init__(self, provider: SdkProvider, endpoint: str) -> None:
        terms = DeskTerms(calls=_MOST, bytes=LARGEST_BYTES)
        super().__init__(provider, terms=terms, context={"processing": "batch"})
        self._endpoint = endpoint

    def line(self, custom_id: str, request: ModelRequest, call: ProviderCall) -> bytes:
        """Return one line of the input file."""
        line = {
            "custom_id": custom_id,
            "method": "POST",
            "url": self._endpoint,
            "body": self.body(request, call),
        }
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"

    def body(self, request: ModelRequest, call: ProviderCall) -> dict[str, Any]:
        """Return the body of one call; a batch is in the background by itself."""
        settings = replace(request.settings, background=False)
        return super().body(replace(request, settings=settings), call)

    async def submit(self, parcel: Parcel, lines: BytesIO) -> str:
        """Upload the file, which is free; then make the batch, which is not."""
        lines.seek(0)
        file = (f"{parcel.id}.jsonl", lines, "application/jsonl")
        options = {
            **self._options(SEND_SECONDS),
            "headers": {"Content-Type": "multipart/form-data"},
        }
        try:
            uploaded = await self._ask(
                "post", "/files", options, body={"purpose": "batch"}, files=[("file", file)]
            )
        except ProviderError as e:
            e.sent = False  # a file alone asks for nothing
            raise
        made = await self._post(
            "/batches",
            {
                "input_file_id": uploaded["id"],
                "endpoint": self._endpoint,
                "completion_window": "24h",
                "metadata": {_OURS: parcel.id},
            },
        )
        return str(made["id"])

    async def find(self, parcel: Parcel) -> Found:
        """Look for the batch that bears the parcel's id, newest first."""
        oldest = parcel.sent_at_ms // 1000 - _SKEW_SECONDS
        after: dict[str, object] = {}
        while True:
            page = await self._get("/batches", limit=_PAGE, **after)
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get(_OURS) == parcel.id:
                    return Found(ref=str(batch["id"]))
            if not page.get("has_more") or batches[-1].get("created_at", 0) < oldest:
                return Found()
            after = {"after": batches[-1]["id"]}

    async def look(self, ref: str) -> Standing:
        """Return how the batch stands."""
        try:
            batch = await self._get(_place(ref))
        except ProviderError as e:
            if is_missing(e):
                return Standing(is_lost=True)
            raise
        status = batch.get("status")
        if status != "failed":
            return Standing(is_done=status in _OVER)
        errors = (batch.get("errors") or {}).get("data") or [{}]
        codes = {str(one.get("code")) for one in errors}
        said = str(errors[0].get("message") or "no reason given")
        return Standing(failed=f"OpenAI refused the batch: {said}", retryable=bool(codes & _BUSY))

    async def results(
        self,
        parcel: Parcel,
        asked: AskedPages,
    ) -> AsyncIterator[tuple[str, Result]]:
        """Yield what both files of the batch say."""
        batch = await self._get(_place(parcel.ref or ""))
        for name in ("output_file_id", "error_file_id"):
            if batch.get(name):
                path = f"/files/{quote(str(batch[name]), safe='')}/content"
                async for line in self._lines(path):
                    yield str(line.get("custom_id")), _result(line)
        if batch.get("status") in {"expired", "cancelled"}:
            kind: Any = batch["status"]  # what the files leave out was not begun
            async for custom_id, _, _ in asked():
                yield custom_id, Result(kind=kind)

    def _cancel_path(self, ref: str) -> str:
        return f"{_place(ref)}/cancel"


def _place(ref: str) -> str:
    return f"/batches/{quote(ref, safe='')}"


def _result(line: dict[str, Any]) -> Result:
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        status, request_id = int(response.get("status_code") or 0), response.get("request_id")
        body = response.get("body")
        body = body if isinstance(body, dict) else {"message": str(body)}
        kind: Any = "answer" if status == _OK else "error"
        return Result(kind=kind, body=body, status=status, request_id=request_id)
    error = error if isinstance(error, dict) else {"message": str(error)}
    if error.get("code") in {_EXPIRED, _CANCELLED}:
        return Result(kind="expired" if error["code"] == _EXPIRED else "cancelled")
    return Result(kind="error", body={"error": error})


class WindowDesk(VendorDesk):
    """One response in the background with a completion window, at less than the standard price.

    Args:
        provider: The adapter whose calls it takes.
        window: ``2h`` or ``8h``.
    """

    def __init__(self, provider: SdkProvider, window: str) -> None:
        terms = DeskTerms(calls=1, bytes=LARGEST_BYTES)
        super().__init__(provider, terms=terms, context={"completion_window": window})
        self._window = window

    def body(self, request: ModelRequest, call: ProviderCall) -> dict[str, Any]:
        """Return the body of the request."""
        settings = replace(request.settings, background=True)
        body = super().body(replace(request, settings=settings), call)
        return {**body, "background_options": {"completion_window": self._window}}

    def line(self, custom_id: str, request: ModelRequest, call: ProviderCall) -> bytes:
        """Return the body of the request; the custom id goes with it, for people."""
        body = self.body(request, call)
        body["metadata"] = {**(body.get("metadata") or {}), "agentflow_call": custom_id}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    async def submit(self, parcel: Parcel, lines: BytesIO) -> str:  # noqa: ARG002
        """Send the request."""
        return str((await self._post("/responses", json.loads(lines.getvalue())))["id"])

    async def find(self, parcel: Parcel) -> Found:  # noqa: ARG002
        """Say that nobody can tell: responses cannot be listed."""
        return Found(is_known=False)

    async def look(self, ref: str) -> Standing:
        """Return how the response stands."""
        try:
            response = await self._get(_response(ref))
        except ProviderError as e:
            if is_missing(e):
                return Standing(is_lost=True)
            raise
        return Standing(is_done=response.get("status") not in _OPEN)

    async def results(self, parcel: Parcel, asked: AskedPages) -> AsyncIterator[tuple[str, Result]]:
        """Yield the one answer."""
        answer = await self._get(_response(parcel.ref or ""))
        told = (answer.get("metadata") or {}).get("agentflow_call")
        if told:
            yield str(told), Result(kind="answer", body=answer)
            return
        async for custom_id, _, _ in asked():
            yield custom_id, Result(kind="answer", body=answer)

    def _cancel_path(self, ref: str) -> str:
        return f"{_response(ref)}/cancel"


def _response(ref: str) -> str:
    return f"/responses/{quote(ref, safe='')}"
