"""What a model answered."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from agentflow.codec import Stored
from agentflow.dataclass import dataclass
from agentflow.llm.messages import Message
from agentflow.llm.request import FinishReason
from agentflow.llm.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResponse:
    """One answer, with everything that the ledger and an auditor need.

    Attributes:
        message: The assistant's message; its body is stored once, by digest.
        finish: Why the model stopped.
        model: The model as served, ``provider:name``.
        usage: Token counts, or None where the provider did not say.
        response_id: The vendor's id of the answer.
        request_id: The vendor's id of the HTTP request.
        service_tier: Tier as served, if the vendor said.
        context: Facts that change the price: speed, region, batch.
        raw: The vendor's response without what `message` already holds.
        cost_pico_usd: What it cost when it was asked, in pico-USD; None where that is not known
            in full. The ledger has the lines.
    """

    message: Annotated[Message, Stored()]
    finish: FinishReason
    model: str
    usage: Usage | None
    response_id: str | None = None
    request_id: str | None = None
    service_tier: str | None = None
    context: dict[str, str] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    cost_pico_usd: int | None = None

    @property
    def raw_usage(self) -> dict[str, Any]:
        """Usage as the vendor wrote it, with what OpenAI's Responses say of tools beside it."""
        found = self.raw.get("usage")
        usage = dict(found) if isinstance(found, dict) else {}
        beside = self.raw.get("tool_usage")
        return {**usage, "tool_usage": beside} if beside and usage else usage
