"""Limits of one run of an agent: calls, tokens, depth, time, and the same call again and again.

All of them are decided from what is recorded (answers, and timers of the run's own time), so that
a replay decides the same. Budgets, which many runs share, are in `agentflow.ledger.budgets`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from agentflow.activities.llm_call import tokens_used
from agentflow.codec import canonical
from agentflow.engine.limits import Limits
from agentflow.errors import LimitError
from agentflow.llm.messages import ToolCallPart
from agentflow.llm.response import ModelResponse


class Meter:
    """Counts what one run of an agent uses, for itself and for those that called it.

    Args:
        agent: The agent's name.
        limits: Its limits.
        above: The meter of the agent that called this one as a tool.

    Attributes:
        calls: Number of calls of models so far.
        tokens: Number of tokens that are used.

    Raises:
        LimitError: there are too many agents one below the other.
    """

    def __init__(self, agent: str, limits: Limits, above: Meter | None = None) -> None:
        self.limits = limits
        self._agent = agent
        self.above = above
        self.calls = 0
        self.tokens = 0
        self._asked: Counter[tuple[str, bytes]] = Counter()
        for level, meter in enumerate(self._line()):
            allowed = meter.limits.depth
            if allowed is not None and level > allowed:
                raise meter.passed("depth", allowed, level)

    def _line(self) -> Iterator[Meter]:
        meter: Meter | None = self
        while meter is not None:
            yield meter
            meter = meter.above

    def before_call(self) -> None:
        """Count a call of a model that is about to be made.

        Raises:
            LimitError: it is one too many, or the tokens are used.
        """
        for meter in self._line():
            calls, tokens = meter.limits.calls, meter.limits.tokens
            if calls is not None and meter.calls >= calls:
                raise meter.passed("calls", calls, meter.calls + 1)
            if tokens is not None and meter.tokens >= tokens:
                raise meter.passed("tokens", tokens, meter.tokens)
        for meter in self._line():
            meter.calls += 1

    def answered(self, response: ModelResponse) -> None:
        """Count what an answer used; what a vendor does not tell is not counted."""
        tokens = tokens_used(response)
        for meter in self._line():
            meter.tokens += tokens

    def tool_asked(self, call: ToolCallPart) -> None:
        """Count a tool call that the model asks for.

        Raises:
            LimitError: the same one was asked for too often.
        """
        allowed = self.limits.repeats
        if allowed is None:
            return
        what = call.name, _plain(call.arguments)
        self._asked[what] += 1
        if self._asked[what] > allowed:
            error = self.passed("repeats", allowed, self._asked[what])
            error.data["tool"] = call.name
            raise error

    def passed(self, limit: str, allowed: object, used: object) -> LimitError:
        """Return the error that says which limit was passed."""
        words = {
            "calls": f"made {allowed} calls of models and wants another one",
            "tokens": f"has used {used} of {allowed} tokens and wants more",
            "depth": f"has agents {used} deep below it, and may have {allowed}",
            "wall_clock": f"has not finished within {allowed}",
            "repeats": f"asked for the same tool call {used} times, and may {allowed} times",
        }
        return LimitError(
            f"agent {self._agent} {words[limit]}",
            data={"agent": self._agent, "limit": limit, "allowed": str(allowed), "used": str(used)},
        )


def _plain(arguments: str) -> bytes:
    """Return arguments such that equal ones are equal, however the model wrote them."""
    try:
        return canonical(json.loads(arguments))
    except ValueError:
        return arguments.encode()
