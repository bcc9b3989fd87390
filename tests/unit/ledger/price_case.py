"""A price case: what was used, the published rates that apply, and the sum by hand.

A line is (unit, quantity, USD per million units), with the name of another row of `PUBLISHED`
where it is not the case's own. 1 token at 1 USD per million is 1,000,000 pico-USD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agentflow.ledger.entries import CostStatus
from agentflow.llm.usage import Usage

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)

Line = tuple[str, int, str | None] | tuple[str, int, str | None, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attempt and the lines that it must cost.

    Attributes:
        name: What it shows.
        model: ``provider:name`` as served.
        rates: The row of `PUBLISHED` that its lines are reckoned with; "" = nobody lists any.
        times: The entries of `FACTORS` that every token rate is multiplied by.
        usage: What the vendor said.
        lines: The expected lines; of price None where it is not known.
        tier: Service tier as served.
        context: Other facts of the call.
        at: When it was.
        status: How far the cost is known.
        reason: Why no further.
    """

    name: str
    model: str
    rates: str = ""
    times: tuple[str, ...] = ()
    usage: Usage | None
    lines: list[Line]
    tier: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    at: datetime = NOW
    status: CostStatus = "priced"
    reason: str = ""


def tokens(input_: int, output: int, **details: Any) -> Usage:
    """Return usage with that many input and output tokens in all."""
    return Usage(input_tokens=input_, output_tokens=output, **details)


def iteration(kind: str, input_: int, output: int, **more: object) -> dict[str, object]:
    """Return an iteration as Anthropic reports it: input without cached tokens."""
    return {
        "type": kind,
        "input_tokens": input_,
        "output_tokens": output,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
        **more,
    }
