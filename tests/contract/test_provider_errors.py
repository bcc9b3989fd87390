"""Every adapter, through its real SDK, when things go wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from dataclasses import replace
from typing import Any

import pytest

from agentflow.errors import ProviderError
from agentflow.llm.messages import assistant
from agentflow.providers.anthropic import Anthropic
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.openai_responses import OpenAIResponses
from agentflow.testing.loopback import Answer, Fault, LoopbackServer, Seen
from tests.contract.provider_dialects import (
    DIALECTS,
    KEY,
    Client,
    Dialect,
    ask,
    both_ways,
    complete,
    every_dialect,
    talk,
)


def failure(
    dialect: Dialect, fault: Fault, *, stream: bool = False, **fields: Any
) -> ProviderError:
    """Return the error that one call with *fault* ends in, after exactly one POST."""
    script = [Answer(text="one two three four five six", fault=fault)]
    with LoopbackServer(script) as server:
        with pytest.raises(ProviderError) as caught:
            complete(dialect, server.url, ask(dialect), stream=stream, **fields)
        assert len(server.requests) == 1, "an adapter never retries"
    assert KEY not in "".join(traceback.format_exception(caught.value))
    return caught.value


@every_dialect
@both_ways
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_what_may_pass_is_retryable(dialect: Dialect, status: int, *, stream: bool) -> None:
    """These statuses are worth another try; the request reached the vendor."""
    error = failure(dialect, Fault(status=status), stream=stream)

    assert (error.retryable, error.status, error.sent) == (True, status, True)
    assert error.request_id == "req_loopback"
    assert f"answered {status}" in error.message


@every_dialect
@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, ""), (401, "_API_KEY"), (403, "permissions"), (404, "model's name"), (422, "")],
)
def test_what_will_not_pass_is_not_retried(dialect: Dialect, status: int, hint: str) -> None:
    """These statuses are final, and say what to do."""
    error = failure(dialect, Fault(status=status))

    assert (error.retryable, error.status) == (False, status)
    assert hint in error.hint


@every_dialect
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "86400"}, 86_400.0),
        ({}, None),
    ],
)
def test_the_vendors_wait_is_passed_on(
    dialect: Dialect, headers: dict[str, str], seconds: float | None
) -> None:
    """Nobody waits here, however long the vendor asks; the worker is told."""
    error = failure(dialect, Fault(status=429, headers=headers))

    assert error.retry_after_seconds == seconds


@every_dialect
def test_the_vendors_own_word_on_retries_counts(dialect: Dialect) -> None:
    """`x-should-retry` overrules the status."""
    yes = failure(dialect, Fault(status=400, headers={"x-should-retry": "true"}))
    no = failure(dialect, Fault(status=500, headers={"x-should-retry": "false"}))

    assert (yes.retryable, no.retryable) == (True, False)


def test_an_empty_account_is_not_retried() -> None:
    """429 insufficient_quota does not pass by waiting."""
    body = {"error": {"code": "insufficient_quota", "type": "insufficient_quota", "message": "no"}}
    for dialect in DIALECTS[:2]:
        error = failure(dialect, Fault(status=429, body=body))

        assert error.retryable is False
        assert "credit" in error.hint


@every_dialect
def test_a_conversation_too_long_names_compaction(dialect: Dialect) -> None:
    """Context length is final, and the hint says what helps."""
    error = {"type": "invalid_request_error", "message": "prompt is too long: 250001 tokens"}
    if dialect.name != "anthropic":
        error = {"code": "context_length_exceeded", "message": "maximum context length is …"}
    found = failure(dialect, Fault(status=400, body={"type": "error", "error": error}))

    assert found.retryable is False
    assert "compact" in found.hint


@every_dialect
def test_a_page_of_html_becomes_one_line(dialect: Dialect) -> None:
    """A proxy's error page is an error like others."""
    page = "<html><body>\n<h1>502 Bad Gateway</h1>\n" + "x" * 5_000
    error = failure(dialect, Fault(status=502, body=page))

    assert error.retryable is True
    assert "502 Bad Gateway" in error.message
    assert "\n" not in error.message
    assert len(error.message) < 500


@every_dialect
def test_a_key_that_the_vendor_repeats_is_masked(dialect: Dialect) -> None:
    """Neither the message nor the traceback shows the key."""
    body = {"error": {"type": "authentication_error", "message": f"Incorrect API key: {KEY}."}}
    error = failure(dialect, Fault(status=401, body=body))

    assert "Incorrect API key: [key]" in error.message


@every_dialect
@both_ways
def test_nobody_at_home_is_known_not_to_be_sent(dialect: Dialect, *, stream: bool) -> None:
    """A refused connection costs nothing and may be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ProviderError) as caught:
        complete(dialect, f"http://127.0.0.1:{port}", ask(dialect), stream=stream)

    assert (caught.value.retryable, caught.value.sent) == (True, False)
    assert f"127.0.0.1:{port}" in caught.value.message


@every_dialect
def test_an_address_without_scheme_is_a_setting_to_mend(dialect: Dialect) -> None:
    """A base URL that is none is final and not sent."""
    with pytest.raises(ProviderError) as caught:
        complete(dialect, "127.0.0.1", ask(dialect))

    assert (caught.value.retryable, caught.value.sent) == (False, False)
    assert "_BASE_URL" in caught.value.hint


@every_dialect
@both_ways
def test_an_answer_that_is_late_may_be_billed(dialect: Dialect, *, stream: bool) -> None:
    """The call's own time-out is kept; the request was sent."""
    error = failure(dialect, Fault(delay_seconds=20), stream=stream, timeout_seconds=0.1)

    assert (error.retryable, error.sent, error.status) == (True, True, None)
    assert "0.1 s" in error.message


@every_dialect
def test_a_stream_that_drips_is_late_too(dialect: Dialect) -> None:
    """The time-out is for the whole answer, not for each piece of it."""
    error = failure(dialect, Fault(pause_seconds=0.06), stream=True, timeout_seconds=0.2)

    assert "did not answer" in error.message


@every_dialect
@both_ways
@pytest.mark.parametrize("moment", ["before", "middle"])
def test_a_broken_connection_may_be_billed(dialect: Dialect, moment: Any, *, stream: bool) -> None:
    """A disconnect before or within the answer is retryable, and was sent."""
    error = failure(dialect, Fault(disconnect=moment), stream=stream)

    assert (error.retryable, error.sent) == (True, True)


@every_dialect
def test_a_stream_without_its_end_is_an_error(dialect: Dialect) -> None:
    """An orderly end before the terminal event is no answer."""
    error = failure(dialect, Fault(truncate=True), stream=True)

    assert (error.retryable, error.sent) == (True, True)
    assert "ended before the answer was complete" in error.message


@every_dialect
@both_ways
def test_broken_json_is_tried_once_more(dialect: Dialect, *, stream: bool) -> None:
    """Nonsense is retryable at the first attempt, not at the second."""
    first = failure(dialect, Fault(malformed=True), stream=stream)
    second = failure(dialect, Fault(malformed=True), stream=stream, attempt=2)

    assert (first.retryable, second.retryable) == (True, False)
    assert "no JSON" in first.message


@every_dialect
@pytest.mark.parametrize("body", ["[]", '"hi"', "{}", '{"output": 3, "choices": 3, "content": 3}'])
def test_json_that_is_no_answer_says_so(dialect: Dialect, body: str) -> None:
    """JSON of another shape is as good as none."""
    error = failure(dialect, Fault(status=200, body=body))

    assert error.retryable is True
    assert "answered with" in error.message
    assert "_BASE_URL" in error.hint


@every_dialect
@pytest.mark.parametrize(
    ("kind", "retryable"), [("overloaded_error", True), ("invalid_request_error", False)]
)
def test_an_error_inside_a_stream_is_an_error(
    dialect: Dialect, kind: str, *, retryable: bool
) -> None:
    """What the vendor says after status 200 is judged by its type."""
    event = {"type": "error", "error": {"type": kind, "code": kind, "message": "sorry"}}
    page = f"event: error\ndata: {json.dumps(event)}\n\n"
    error = failure(dialect, Fault(status=200, body=page), stream=True)

    assert error.retryable is retryable
    assert "sorry" in error.message


def test_a_failed_response_keeps_its_usage() -> None:
    """OpenAI may bill a response that failed: the error carries what it used."""
    extra = {"status": "failed", "error": {"code": "server_error", "message": "oops"}}
    dialect = DIALECTS[0]
    for stream in (False, True):
        script = [Answer(extra=extra, input_tokens=9, output_tokens=1)]
        with LoopbackServer(script) as server, pytest.raises(ProviderError) as caught:
            complete(dialect, server.url, ask(dialect), stream=stream)

        usage = caught.value.data["usage"]
        assert caught.value.retryable is True
        assert isinstance(usage, dict)
        assert usage["input_tokens"] == 9


def test_a_chat_cut_behind_its_last_word_is_an_answer_of_unknown_usage() -> None:
    """The finish reason is the end of the answer; the usage that should follow is unknown."""
    finish = {"choices": [{"index": 0, "delta": {"content": "Hi."}, "finish_reason": "stop"}]}
    page = f"data: {json.dumps({'id': 'c1', 'model': 'm', **finish})}\n\n"
    dialect = DIALECTS[1]
    with LoopbackServer([Answer(fault=Fault(status=200, body=page))]) as server:
        response = complete(dialect, server.url, ask(dialect), stream=True)

    assert response.message == assistant("Hi.")
    assert response.usage is None


@every_dialect
@both_ways
def test_cancelling_cancels_and_hangs_up(dialect: Dialect, *, stream: bool) -> None:
    """CancelledError passes through, and the vendor sees the connection close."""

    async def cancel(client: Client) -> None:
        task = asyncio.create_task(client.complete(ask(dialect), stream=stream))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while server.requests[0].outcome == "pending":
            await asyncio.sleep(0.01)

    fault = Fault(pause_seconds=0.2) if stream else Fault(delay_seconds=20)
    with LoopbackServer([Answer(text="a b c d e f g h", fault=fault)]) as server:
        talk(dialect, server.url, cancel)

        assert [r.outcome for r in server.requests] == ["aborted"]


@every_dialect
def test_a_callback_that_fails_is_not_blamed_on_the_vendor(dialect: Dialect) -> None:
    """An error of our own passes through as it is."""

    async def fail(client: Client) -> None:
        class Broken(list[Any]):
            def append(self, item: Any) -> None:
                raise ZeroDivisionError

        client.deltas = Broken()
        with pytest.raises(ZeroDivisionError):
            await client.complete(ask(dialect), stream=True)

    with LoopbackServer(["one two"]) as server:
        talk(dialect, server.url, fail)


@every_dialect
def test_the_same_attempt_keeps_its_idempotency_key(dialect: Dialect) -> None:
    """The key is stable over attempts; a key that fits no header is sent as its digest."""
    with LoopbackServer(lambda _: "ok") as server:
        complete(dialect, server.url, ask(dialect), idempotency_key="run/1", attempt=1)
        complete(dialect, server.url, ask(dialect), idempotency_key="run/1", attempt=2)
        complete(dialect, server.url, ask(dialect), idempotency_key="läuft/1")
        keys = [r.key for r in server.requests]

    assert keys[:2] == ["run/1", "run/1"]
    assert len(keys[2]) == 64


@pytest.mark.parametrize("provider", [OpenAIResponses(), OpenAIChat(), Anthropic()])
def test_without_a_key_nothing_is_sent(
    provider: OpenAIResponses | OpenAIChat | Anthropic,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    """The error names the setting, before any request."""
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    dialect = next(d for d in DIALECTS if d.name == provider.name)
    call = Client(provider, [], [])
    with pytest.raises(ProviderError) as caught:
        asyncio.run(call.complete(ask(dialect)))

    assert (caught.value.retryable, caught.value.sent) == (False, False)
    assert "_API_KEY" in caught.value.hint


@every_dialect
def test_the_environment_is_enough(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key and address come from where the SDK reads them; our client is closed by us."""
    made = {"openai": OpenAIResponses, "openai-chat": OpenAIChat, "anthropic": Anthropic}

    async def run() -> None:
        provider = made[dialect.name]()
        response = await Client(provider, [], []).complete(ask(dialect))
        await provider.close()

        assert response.message.text == "ok"

    with LoopbackServer(["ok"]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        asyncio.run(run())


def test_faults_can_be_scripted_by_repetition() -> None:
    """A script sees how often it met the same request: first an error, then an answer."""

    def once(seen: Seen) -> Answer:
        answer = Answer(text="ok")
        return answer if seen.repeat else replace(answer, fault=Fault(status=529))

    dialect = DIALECTS[2]
    with LoopbackServer(once) as server:
        with pytest.raises(ProviderError):
            complete(dialect, server.url, ask(dialect))
        response = complete(dialect, server.url, ask(dialect), attempt=2)

        assert [r.outcome for r in server.requests] == ["fault 529", "answered"]
    assert response.message.text == "ok"
