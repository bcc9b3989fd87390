"""What an agent answers, and what adds up on the way."""

from __future__ import annotations

from dataclasses import field
from decimal import Decimal
from typing import Generic

from agentflow.agents.spec import Output
from agentflow.dataclass import dataclass
from agentflow.ledger.entries import usd
from agentflow.llm.messages import Messages
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult(Generic[Output]):
    """An agent's answer. A workflow may return it: annotate it as ``AgentResult[Report]``.

    Attributes:
        output: The answer, of the agent's `output_type`.
        messages: The whole conversation; pass it as ``conversation=`` to carry on.
        usage: Tokens of all answers, those of agents called as tools included.
        cost_usd: What those answers cost, in US dollars; None where a part is not known. Failed
            attempts and tools that cost money are in the ledger only: see ``run.cost()``.
        agent: Name of the agent that answered last, after hand-offs.
        model: ``provider:name`` that answered last, after fallbacks.
        turns: Number of answers that the conversation took.
    """

    output: Output
    messages: Messages
    usage: Usage
    cost_usd: Decimal | None
    agent: str
    model: str
    turns: int


@dataclass(slots=True)
class Tally:
    """What the answers of one `Agent.run` add up to.

    Attributes:
        usage: Tokens, as far as the vendors said.
        cost_pico_usd: Cost in pico-USD, or None once a part is not known.
    """

    usage: Usage = field(default_factory=Usage)
    cost_pico_usd: int | None = 0

    def add(self, usage: Usage | None, cost_pico_usd: int | None) -> None:
        """Add an answer, or what another agent's answers came to."""
        if usage is not None:
            self.usage += usage
        if self.cost_pico_usd is None or cost_pico_usd is None:
            self.cost_pico_usd = None
        else:
            self.cost_pico_usd += cost_pico_usd

    def answered(self, response: ModelResponse) -> None:
        """Add an answer of a model."""
        self.add(response.usage, response.cost_pico_usd)

    @property
    def cost_usd(self) -> Decimal | None:
        """The cost in US dollars."""
        return None if self.cost_pico_usd is None else usd(self.cost_pico_usd)
