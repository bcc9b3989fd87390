"""Chat completions that are stored: an answer that never arrived is looked up, not paid again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import openai
import pytest

from agentflow.errors import ProviderError, ResponseLostError
from agentflow.llm.messages import Messages, user
from agentflow.llm.request import ModelRequest, ModelSettings
from agentflow.llm.stream import Delta
from agentflow.protocols import Findable, ProviderCall
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.stored_chat import Search
from agentflow.testing.loopback import Answer, Fault, LoopbackServer

SEARCH = Search(lasts=timedelta(milliseconds=60), pause=timedelta(milliseconds=10))
CALL = ProviderCall(idempotency_key="call", attempt=1)
REF = "agentflow_call=call-1"
LOST = Answer(text="Paid once.", calls=(("go", {}),), fault=Fault(disconnect="reply"))


def request_of(**extra: Any) -> ModelRequest:
    """Return a request with a vendor's fields."""
    settings = ModelSettings(extra=extra)
    return ModelRequest(model="openai-chat:m", messages=Messages([user("hi")]), settings=settings)


@asynccontextmanager
async def provider_of(url: str) -> AsyncIterator[OpenAIChat]:
    """Yield the adapter of a server."""
    async with openai.AsyncOpenAI(api_key="sk-test", base_url=url) as client:
        yield OpenAIChat(client, search=SEARCH)


async def test_a_lost_reply_is_looked_up_by_its_name() -> None:
    """One POST; the answer has its usage, and the metadata of the user is sent as well."""
    shown: list[Delta] = []
    second = ProviderCall(idempotency_key="call", attempt=2, on_delta=shown.append)
    request = request_of(store=True, metadata={"team": "blue"})
    with LoopbackServer([LOST]) as server:
        async with provider_of(server.openai_url) as provider:
            assert isinstance(provider, Findable)
            assert provider.handle(request, CALL) == REF
            with pytest.raises(ProviderError) as failed:
                await provider.complete(request, CALL)
            answer = await provider.resume(REF, request, second)

        assert (failed.value.sent, failed.value.status) == (True, None)
        assert answer.message.text == "Paid once."
        assert [(d.text, d.tool_name) for d in shown] == [("Paid once.", ""), ("", "go")]
        assert answer.usage is not None
        assert answer.usage.input_tokens + answer.usage.output_tokens == server.billed_tokens
        assert [r.body["metadata"] for r in server.requests] == [
            {"agentflow_call": "call-1", "team": "blue"}
        ]
        assert server.looks == [("list", "call-1")]


async def test_what_is_not_listed_is_lost() -> None:
    """After the search; where there is no such list, at once."""
    request = request_of(store=True)
    with LoopbackServer([LOST]) as server:
        async with provider_of(server.openai_url) as provider:
            with pytest.raises(ResponseLostError, match="is not listed"):
                await provider.resume("agentflow_call=other-1", request, CALL)
        assert len(server.looks) > 1
        async with provider_of(f"{server.url}/nowhere") as provider:
            with pytest.raises(ResponseLostError, match="cannot be looked up"):
                await provider.resume(REF, request, CALL)


async def test_a_vendor_out_of_reach_keeps_the_call_in_flight() -> None:
    """The next attempt looks on: nothing is sent again."""
    with LoopbackServer() as server:
        url = server.openai_url
    async with provider_of(url) as provider:
        with pytest.raises(ProviderError) as failed:
            await provider.resume(REF, request_of(store=True), CALL)
    assert failed.value.in_flight


async def test_what_is_not_stored_has_no_name() -> None:
    """Then the doubt is one like others."""
    async with provider_of("http://127.0.0.1:1") as provider:
        assert provider.handle(request_of(), CALL) is None
        assert provider.handle(request_of(store=False), CALL) is None
