"""The three adapters as the contract tests meet them: real SDKs, a loopback server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anthropic
import openai
import pytest

from agentflow.llm.messages import Message, Messages, user
from agentflow.llm.request import ModelRequest, ToolSpec
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.protocols import ProviderCall
from agentflow.providers.anthropic import Anthropic
from agentflow.providers.exchange import SdkProvider
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.openai_responses import OpenAIResponses

T = TypeVar("T")

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading certificates takes 30 ms each time
KEY = "sk-test-0123456789abcdef"

SEARCH = ToolSpec(
    name="search",
    description="Search the corpus.",
    parameters={
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "required": ["query"],
    },
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One adapter and how to reach a server with it."""

    name: str
    model: str

    def provider(self, url: str, **options: Any) -> SdkProvider:
        """Return the adapter around a real SDK client of *url* (without /v1)."""
        if self.name == "anthropic":
            http: Any = anthropic.DefaultAsyncHttpxClient(verify=NO_TLS)
            options = {"http_client": http, **options}
            return Anthropic(anthropic.AsyncAnthropic(api_key=KEY, base_url=url, **options))
        http = openai.DefaultAsyncHttpxClient(verify=NO_TLS)
        options = {"http_client": http, **options}
        client = openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", **options)
        return OpenAIResponses(client) if self.name == "openai" else OpenAIChat(client)


DIALECTS = (
    Dialect("openai", "openai:gpt-6-sol"),
    Dialect("openai-chat", "openai-chat:gpt-6-sol"),
    Dialect("anthropic", "anthropic:claude-sonnet-5-5"),
)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def ask(dialect: Dialect, *messages: Message, **fields: Any) -> ModelRequest:
    """Return a request to the dialect's model; without messages it says hi."""
    conversation = Messages(messages or (user("hi"),))
    return ModelRequest(model=dialect.model, messages=conversation, **fields)


@dataclass(slots=True)
class Client:
    """What a test asks an adapter with."""

    provider: SdkProvider
    deltas: list[Delta]
    refs: list[str]

    async def complete(
        self, request: ModelRequest, *, stream: bool = False, **fields: Any
    ) -> ModelResponse:
        """Ask once, watching the stream if there is one."""
        call = ProviderCall(
            **{"idempotency_key": "call-1", **fields},
            on_delta=self.deltas.append if stream else None,
            on_ref=self.refs.append,
        )
        return await self.provider.complete(request, call)


def talk(dialect: Dialect, url: str, body: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    """Run *body* with the dialect's adapter at *url*, and close its connections."""

    async def run() -> T:
        provider = dialect.provider(url, **options)
        try:
            return await body(Client(provider, [], []))
        finally:
            await provider._client.close()

    return asyncio.run(run())


def complete(
    dialect: Dialect, url: str, request: ModelRequest, *, stream: bool = False, **fields: Any
) -> ModelResponse:
    """Ask once and return the answer."""
    return talk(dialect, url, lambda c: c.complete(request, stream=stream, **fields))
