"""@tool: what a model sees, what is recorded, and that a plain call stays one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from decimal import Decimal
from typing import Any, assert_type

import pytest
from pydantic import Field

from agentflow.activities.tool_call import tool_record
from agentflow.engine.definition import ActivityContext, ActivityDefinition, ActivityOptions
from agentflow.errors import UsageError
from agentflow.llm.request import ToolSpec
from agentflow.retry import NO_RETRY, RetryPolicy
from agentflow.tools.tool import Tool, tool


@tool
async def find_words(words: str, limit: int = 5) -> list[str]:
    """Find words.

    Args:
        words: What to look for.
        limit: Number of hits.
    """
    return [words] * limit


@tool(effect="once", title="Publish", needs_approval=True, cost_usd="0.02", timeout=5)
def publish_report(ctx: ActivityContext, report: dict[str, Any]) -> str:
    """Publish a report."""
    return f"{ctx.attempt}: {report}"


@tool(needs_approval=lambda amount, to, **_: amount > 10 and to != "me")
def pay_out(
    amount: int, to: str = "you", *, note: str = Field("", max_length=10), **more: int
) -> str:
    """Pay."""
    return f"{amount} {to} {note} {more}"


def test_a_bare_tool_is_an_idempotent_activity() -> None:
    """Registered under its name, with the terms of activities."""
    assert find_words.options == ActivityOptions(retry=NO_RETRY)
    assert find_words.needs_approval is False
    assert find_words.cost_usd is None


def test_terms_are_those_of_an_activity() -> None:
    """A tool that must not be repeated is not tried again."""
    assert publish_report.options.effect == "once"
    assert publish_report.options.on_doubt == "ask"
    assert publish_report.options.retry == NO_RETRY
    assert publish_report.cost_usd == Decimal("0.02")


def test_a_call_outside_a_run_is_a_plain_call() -> None:
    """Sync stays sync; a context is made up where one is wanted."""
    assert asyncio.run(_awaited(find_words("a", limit=2))) == ["a", "a"]
    assert str(publish_report.plain((), {"report": {}})) == "1: {}"


async def _awaited(call: Awaitable[Any]) -> Any:
    return await call


def test_signature_and_docstring_are_what_a_model_sees() -> None:
    """In strict form: what is optional may be null."""
    assert find_words.spec == ToolSpec(
        name="find_words",
        description="Find words.",
        parameters={
            "type": "object",
            "properties": {
                "words": {"type": "string", "description": "What to look for."},
                "limit": {"type": ["integer", "null"], "description": "Number of hits."},
            },
            "required": ["words", "limit"],
            "additionalProperties": False,
        },
        strict=True,
    )
    assert find_words.spec is find_words.spec


def test_a_context_and_free_form_types() -> None:
    """The context is no argument; what strict mode cannot say is sent as it is."""
    assert list(publish_report.spec.parameters["properties"]) == ["report"]
    assert publish_report.spec.strict is False


def test_strict_can_be_turned_off() -> None:
    """The schema is then the plain one."""
    loose = tool(name="find_loosely", strict=False)(find_words.fn)

    assert loose.spec.strict is False
    assert loose.spec.parameters["required"] == ["words"]
    assert loose.spec.parameters["properties"]["limit"]["default"] == 5


def test_a_call_that_needs_approval_says_so() -> None:
    """With a question that shows the call in one line."""
    asked = publish_report.asked({"report": {"title": "x" * 200}})

    assert asked.needs_approval
    assert asked.question == f'Allow Publish (publish_report): report={{"title": "{"x" * 69}…?'
    assert find_words.asked({"words": "a"}).question == ""


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ({"amount": 5}, False),
        ({"amount": 50}, True),
        ({"amount": 50, "to": "me"}, False),
        ({"amount": 50, "note": "n", "more": {"x": 1}}, True),
    ],
)
def test_a_rule_sees_the_arguments_by_name(arguments: dict[str, Any], *, needed: bool) -> None:
    """With the defaults of those that were left out."""
    assert pay_out.is_approval_needed(arguments) is needed


def test_with_options_is_a_copy() -> None:
    """Key and label are of the copy's calls; schema and price stay."""
    other = publish_report.with_options(key="k", label="l", retry=RetryPolicy(max_attempts=2))

    assert (other.asked({"report": {}}).key, other.asked({"report": {}}).label) == ("k", "l")
    assert other.cost_usd == publish_report.cost_usd
    assert other.spec == publish_report.spec
    assert publish_report.key is None


@pytest.mark.parametrize("cost", [0.5, "much", "-1", "NaN", "0.0000000000001", True])
def test_a_price_is_an_exact_amount(cost: Any) -> None:
    """Floats are not: sums over a ledger must be exact."""
    with pytest.raises(UsageError, match="cost_usd="):
        tool(cost_usd=cost)


def test_a_name_must_be_one_that_vendors_take() -> None:
    """Said when the tool is defined."""
    with pytest.raises(UsageError, match="no name for a tool"):
        tool(name="no name")(find_words.fn)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (None, "ok", ""),
        (ValueError("a\nb"), "error", "ValueError: a"),
        (ValueError(), "error", "ValueError"),
        (asyncio.CancelledError(), "cancelled", ""),
    ],
)
def test_every_attempt_that_ran_is_booked(
    error: BaseException | None, status: str, text: str
) -> None:
    """A failed one costs the same; a tool without a price has no line."""
    record = tool_record(publish_report, error, latency_ms=7)
    free: ActivityDefinition[..., Any] = find_words

    assert record is not None
    assert (record.kind, record.name, record.status, record.error) == (
        "tool", "publish_report", status, text,
    )  # fmt: skip
    assert record.priced.amount_pico_usd == 20_000_000_000
    assert record.latency_ms == 7
    assert tool_record(free, error, latency_ms=7) is None


def test_a_tool_is_typed_like_its_function() -> None:
    """Calls are checked; in a workflow they are awaited, sync functions too."""

    async def types() -> None:
        assert_type(await find_words("a"), list[str])
        assert_type(await find_words("a", limit=2), list[str])
        assert_type(await pay_out(1), str)

    assert isinstance(find_words, Tool)
    assert types.__name__ == "types"
