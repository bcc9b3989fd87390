"""OpenAI's background mode through the real SDK: begun once, fetched however often it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx2
import openai
import pytest

from agentflow.errors import ProviderError, ResponseLostError
from agentflow.llm.request import ModelSettings
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.protocols import Findable, ProviderCall, Resumable
from agentflow.providers.anthropic import Anthropic
from agentflow.providers.background import Patience
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.openai_responses import OpenAIResponses
from agentflow.testing.loopback import Answer, Fault, LoopbackServer
from tests.contract.provider_dialects import DIALECTS, KEY, NO_TLS, SEARCH, ask, both_ways

TEXT = "one two three four five six"
RESPONSES = DIALECTS[0]
SOON = timedelta(milliseconds=5)
QUICK = Patience(
    first=SOON, longest=SOON, queued=timedelta(seconds=0.2), outage=timedelta(seconds=0.2)
)


class Asked:
    """What one test asks a provider with."""

    def __init__(self, provider: OpenAIResponses, *, stream: bool) -> None:
        self.provider = provider
        self.order: list[str] = []
        self.deltas: list[Delta] = []
        self.call = ProviderCall(
            idempotency_key="k", on_delta=self._shown if stream else None, on_ref=self._told
        )
        self.ref = ""
        self.known, self.shown = asyncio.Event(), asyncio.Event()

    def _shown(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.order.append("delta")
        self.shown.set()

    async def _told(self, ref: str) -> None:
        self.order.append("ref")
        await asyncio.sleep(0.01)
        self.order.append("committed")
        self.ref = ref
        self.known.set()

    @property
    def text(self) -> str:
        """What was shown."""
        return "".join(d.text for d in self.deltas)

    async def complete(self, **fields: Any) -> ModelResponse:
        """Ask."""
        return await self.provider.complete(ask(RESPONSES, **fields), self.call)

    async def resume(self, ref: str, **fields: Any) -> ModelResponse:
        """Fetch."""
        return await self.provider.resume(ref, ask(RESPONSES, **fields), self.call)


def client(url: str) -> openai.AsyncOpenAI:
    """Return a real SDK client."""
    http = openai.DefaultAsyncHttpxClient(verify=NO_TLS)
    return openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", http_client=http)


def talk(
    server: LoopbackServer,
    body: Callable[[Asked], Awaitable[Any]],
    *,
    stream: bool = False,
    patience: Patience = QUICK,
    background: bool | None = True,
) -> Asked:
    """Run *body* with the adapter in background mode; return what was seen."""

    async def run() -> Asked:
        sdk = client(server.url)
        asked = Asked(OpenAIResponses(sdk, background=background, patience=patience), stream=stream)
        try:
            await body(asked)
        finally:
            await sdk.close()
        return asked

    return asyncio.run(run())


@both_ways
def test_an_answer_in_the_background_is_the_answer_in_the_foreground(*, stream: bool) -> None:
    """Text, calls, thoughts and usage are the same; the vendor was asked to store them."""
    answer = Answer(
        text=TEXT, reasoning="Hm.", calls=(("search", {"query": "x"}),), fault=Fault(
            delay_seconds=0.02, pause_seconds=0.002
        )
    )  # fmt: skip
    found: list[ModelResponse] = []

    async def both(asked: Asked) -> None:
        found.append(await asked.complete(tools=(SEARCH,)))
        settings = ModelSettings(background=False)
        found.append(await asked.complete(tools=(SEARCH,), settings=settings))

    with LoopbackServer([answer]) as server:
        talk(server, both, stream=stream)
        bodies = [r.body for r in server.requests]

    back, front = found
    assert (back.message, back.finish) == (front.message, front.finish)
    assert back.usage == front.usage
    assert back.raw["background"] is True
    assert [(b.get("background"), b["store"]) for b in bodies] == [(True, True), (None, False)]


@both_ways
def test_the_id_is_on_record_before_anything_is_shown(*, stream: bool) -> None:
    """What `on_ref` returns is awaited before the first delta."""
    with LoopbackServer([TEXT]) as server:
        asked = talk(server, lambda a: a.complete(), stream=stream)

    assert asked.order[:2] == ["ref", "committed"]
    assert asked.order.count("ref") == 1
    assert asked.text == (TEXT if stream else "")


def test_a_stream_that_breaks_goes_on_behind_the_last_event() -> None:
    """No delta is missing and none comes twice; one POST was paid."""
    fault = Fault(disconnect="middle", pause_seconds=0.002)
    with LoopbackServer([Answer(text=TEXT, fault=fault)]) as server:
        asked = talk(server, lambda a: a.complete(), stream=True)

        assert asked.text == TEXT
        assert len(server.requests) == 1
        assert ("stream", asked.ref) in server.looks


@both_ways
def test_another_process_fetches_the_answer(*, stream: bool) -> None:
    """By its id; the second process pays nothing, and its subscribers see all of it."""
    fault = Fault(pause_seconds=0.005)
    with LoopbackServer([Answer(text=TEXT, fault=fault)]) as server:

        async def die(asked: Asked) -> None:
            dying = asyncio.create_task(asked.complete())
            await (asked.shown if stream else asked.known).wait()
            dying.cancel()
            await asyncio.wait({dying})

        first = talk(server, die, stream=stream)
        found: list[ModelResponse] = []

        async def fetch(asked: Asked) -> None:
            found.append(await asked.resume(first.ref))

        second = talk(server, fetch, stream=stream)

        assert found[0].message.text == TEXT
        assert found[0].response_id == first.ref
        assert second.text == (TEXT if stream else "")
        assert len(server.requests) == 1
        assert server.billed_tokens == server.requests[0].billed_tokens


def test_what_was_not_begun_as_a_stream_is_looked_at() -> None:
    """The vendor streams only what was begun as a stream; the answer is the same."""
    with LoopbackServer([Answer(text=TEXT, fault=Fault(pause_seconds=0.002))]) as server:
        first = talk(server, lambda a: a.complete())
        found: list[ModelResponse] = []

        async def fetch(asked: Asked) -> None:
            found.append(await asked.resume(first.ref))

        talk(server, fetch, stream=True)

    assert found[0].message.text == TEXT


@both_ways
def test_looks_that_fail_are_repeated(*, stream: bool) -> None:
    """A vendor that is down for a moment costs no second POST."""
    fault = Fault(
        looks=(503, 0, 429, 500), disconnect="middle" if stream else None, pause_seconds=0.002
    )
    with LoopbackServer([Answer(text=TEXT, fault=fault)]) as server:
        asked = talk(server, lambda a: a.complete(), stream=stream)

        assert len(server.requests) == 1
        assert asked.text == (TEXT if stream else "")


def test_an_outage_leaves_the_answer_for_the_next_attempt() -> None:
    """The error says that the vendor still works on it."""
    fault = Fault(looks=(503,) * 1000, delay_seconds=60)
    with LoopbackServer([Answer(text=TEXT, fault=fault)]) as server:
        with pytest.raises(ProviderError) as caught:
            talk(server, lambda a: a.complete())

        assert caught.value.in_flight is True
        assert caught.value.retryable is True
        assert len(server.requests) == 1


@pytest.mark.parametrize("known", [False, True])
@both_ways
def test_a_lost_answer_is_said_to_be_lost(*, known: bool, stream: bool) -> None:
    """Unknown to the vendor, or in its queue for ever."""
    with LoopbackServer([Answer(text=TEXT, fault=Fault(stuck=True))]) as server:
        ref: list[str] = []

        async def lose(asked: Asked) -> None:
            begun = asyncio.create_task(asked.complete())
            await asked.known.wait()
            begun.cancel()
            await asyncio.wait({begun})
            ref.append(asked.ref)

        talk(server, lose)
        if not known:
            server.lose()
        with pytest.raises(ResponseLostError) as caught:
            talk(server, lambda a: a.resume(ref[0]), stream=stream)

        assert caught.value.in_flight is False
        assert len(server.requests) == 1
        assert (("cancel", ref[0]) in server.looks) is known


@both_ways
@pytest.mark.parametrize(
    ("extra", "finish"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "failed", "error": {"code": "server_error", "message": "boom"}}, None),
    ],
)
def test_every_end_is_an_end(extra: dict[str, Any], finish: str | None, *, stream: bool) -> None:
    """An incomplete answer is one; a failed one is an error with its usage."""
    answer = Answer(text=TEXT, extra=extra, fault=Fault(pause_seconds=0.001))
    found: list[ModelResponse] = []

    async def complete(asked: Asked) -> None:
        found.append(await asked.complete())

    with LoopbackServer([answer]) as server:
        if finish is None:
            with pytest.raises(ProviderError, match="boom") as caught:
                talk(server, complete, stream=stream)
            assert (caught.value.retryable, caught.value.in_flight) == (True, False)
            assert "usage" in caught.value.data
        else:
            talk(server, complete, stream=stream)
            assert found[0].finish == finish


def test_a_cancelled_answer_stops_and_is_said_to_be_cancelled() -> None:
    """What is cancelled at the vendor is no answer; what was made until then is billed."""
    with LoopbackServer([Answer(text=TEXT, fault=Fault(delay_seconds=60))]) as server:

        async def cancel(asked: Asked) -> None:
            begun = asyncio.create_task(asked.complete())
            await asked.known.wait()
            await asked.provider.cancel(asked.ref)
            await asked.provider.cancel("resp_nobody")  # never raises
            with pytest.raises(ProviderError, match="cancelled"):
                await begun

        talk(server, cancel)
        assert server.billed_tokens > 0


def test_a_reply_that_is_lost_leaves_no_id_behind() -> None:
    """It is billed and goes on, and nobody can know: the caller's policy decides."""
    fault = Fault(disconnect="reply")
    with LoopbackServer([Answer(text=TEXT, fault=fault)]) as server:
        with pytest.raises(ProviderError) as caught:
            talk(server, lambda a: a.complete())

        assert (caught.value.sent, caught.value.in_flight) == (True, False)
        assert server.billed_tokens > 0


@pytest.mark.parametrize(
    ("base_url", "project", "settings", "expected"),
    [
        (None, None, ModelSettings(), True),
        ("https://api.openai.com/v1", None, ModelSettings(), True),
        ("https://eu.api.openai.com/v1", None, ModelSettings(), False),
        ("http://127.0.0.1:1/v1", None, ModelSettings(), False),
        ("http://127.0.0.1:1/v1", True, ModelSettings(), True),
        (None, False, ModelSettings(), False),
        (None, False, ModelSettings(background=True), True),
        (None, True, ModelSettings(background=False), False),
        (None, None, ModelSettings(extra={"store": False}), False),
        (None, True, ModelSettings(extra={"background": False}), False),
    ],
)
def test_who_decides(
    base_url: str | None, settings: ModelSettings, *, project: bool | None, expected: bool
) -> None:
    """The call, then the project, then what the endpoint is known to have."""
    sdk = openai.AsyncOpenAI(
        api_key=KEY, base_url=base_url, http_client=httpx2.AsyncClient(verify=NO_TLS)
    )
    provider = OpenAIResponses(sdk, background=project)

    assert provider.keeps(ask(RESPONSES, settings=settings)) is expected


def test_an_account_that_may_not_store_is_told_what_to_switch() -> None:
    """Some organisations keep nothing with the vendor, and cannot use the background."""
    error = {"message": "Background mode is not supported with Zero Data Retention."}
    fault = Fault(status=400, body={"error": error})
    with LoopbackServer([Answer(fault=fault)]) as server:
        with pytest.raises(ProviderError) as caught:
            talk(server, lambda a: a.complete())

        assert "AGENTFLOW_BACKGROUND=off" in caught.value.hint
        assert caught.value.retryable is False


def test_who_can_fetch() -> None:
    """OpenAI's Responses by their id, stored Chat Completions by a name; Anthropic has nothing."""
    assert isinstance(OpenAIResponses(), Resumable)
    assert not isinstance(OpenAIResponses(), Findable)
    assert isinstance(OpenAIChat(), Findable)
    assert not isinstance(Anthropic(), Resumable)
