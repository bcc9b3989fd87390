"""The tool calls of one turn: checked, run side by side, each recorded as its own activity."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from agentflow.agents.approvals import call_of, denial_text
from agentflow.agents.input import text_of
from agentflow.agents.result import AgentResult, Tally
from agentflow.agents.spec import AgentSpec, AgentTool, Callee, Handoff
from agentflow.dataclass import dataclass
from agentflow.engine.context import Context
from agentflow.errors import (
    ActivityError,
    ApprovalDeniedError,
    InDoubtError,
    LimitError,
    MaxTurnsError,
    ToolArgumentsError,
)
from agentflow.history.failure import Failure
from agentflow.ledger.entries import PICO
from agentflow.llm.messages import ToolCallPart, ToolResultPart
from agentflow.tools.schema import ToolSchema, tool_schema, validate_arguments
from agentflow.tools.tool import Tool

# What no model may see as "an error, try again": after a doubtful call another one might repeat
# its effect, and an agent that ran out of turns would be sent into the next ones.
_ENDS = (InDoubtError, MaxTurnsError, LimitError)

RunAgent: TypeAlias = "Callable[[AgentSpec[Any], str, str | None], Awaitable[AgentResult[Any]]]"


@dataclass(frozen=True, slots=True)
class Answers:
    """What a turn's tool calls came to.

    Attributes:
        parts: A result for each call, in the order of the calls.
        goes_to: The agent that goes on with the conversation, if it was handed over.
    """

    parts: tuple[ToolResultPart, ...]
    goes_to: AgentSpec[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalls:
    """Answers the tool calls of one agent.

    Attributes:
        context: The door to the engine.
        agent: Whose calls they are.
        tally: Takes what agents cost that are called as tools.
        key_of: Gives the next explicit key of a name, or None.
        run_agent: Runs an agent that is called as a tool: agent, input, key.
    """

    context: Context
    agent: AgentSpec[Any]
    tally: Tally
    key_of: Callable[[str], str | None]
    run_agent: RunAgent

    async def answer(self, calls: Sequence[ToolCallPart]) -> Answers:
        """Return the results of *calls*; what must not be hidden from the caller is raised."""
        # Keys and tasks are dealt out by place, whatever becomes of a call: a mended schema must
        # not re-key the calls behind it.
        keyed = [(call, self.key_of(call.name)) for call in calls]
        if len(keyed) == 1 or not self.agent.parallel_tools:
            parts = [await self._answer(call, key) for call, key in keyed]
        else:
            parts = await _side_by_side([self._answer(call, key) for call, key in keyed])
        return self._handed_over(calls, parts)

    async def _answer(self, call: ToolCallPart, key: str | None) -> ToolResultPart:
        callee = self.agent.callees.get(call.name)
        if callee is None:
            return _error(call, _unknown(call.name, self.agent))
        try:
            return _result(call, await self._call(callee, call, key))
        except ToolArgumentsError as e:
            return _error(call, e.message)
        except ApprovalDeniedError as e:
            return _error(call, denial_text(e))
        except _ENDS:
            raise
        except ActivityError as e:
            return _error(call, error_text(e))

    async def _call(self, callee: Callee, call: ToolCallPart, key: str | None) -> str:
        match callee:
            case Tool():
                given = validate_arguments(callee.schema, call.arguments)
                arguments = callee.bind((), given)
                asked = call_of(callee, arguments, agent=self.agent.name, key=key)
                return text_of(await self.context.call(asked), callee.returns)
            case AgentTool():
                given = validate_arguments(_asked(), call.arguments)
                found = await self.run_agent(callee.agent, given["input"], key)
                cost = found.cost_usd
                self.tally.add(found.usage, None if cost is None else int(cost * PICO))
                return text_of(found.output, callee.agent.output_type)
            case Handoff():
                return f"{callee.agent.name} goes on with the conversation."

    def _handed_over(
        self, calls: Sequence[ToolCallPart], parts: Sequence[ToolResultPart]
    ) -> Answers:
        """Return the answers; of several hand-offs the first one counts."""
        goes_to: AgentSpec[Any] | None = None
        told = list(parts)
        for place, call in enumerate(calls):
            callee = self.agent.callees.get(call.name)
            if isinstance(callee, Handoff) and goes_to is None:
                goes_to = callee.agent
            elif isinstance(callee, Handoff):
                told[place] = _error(call, "The conversation was handed over already.")
        return Answers(tuple(told), goes_to)


def _ask(input: str) -> str:
    return input


@lru_cache(maxsize=1)
def _asked() -> ToolSchema:
    return tool_schema(_ask, name="agent")


async def _side_by_side(jobs: Sequence[Any]) -> list[ToolResultPart]:
    """Run all; where one raises, cancel the others and raise what it raised, not a group."""
    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
        return [task.result() for task in tasks]
    except BaseExceptionGroup as e:
        failed = e
    while isinstance(failed, BaseExceptionGroup):
        failed = failed.exceptions[0]
    raise failed


def _result(call: ToolCallPart, text: str) -> ToolResultPart:
    return ToolResultPart(call_id=call.id, name=call.name, content=text)


def _error(call: ToolCallPart, text: str) -> ToolResultPart:
    return ToolResultPart(call_id=call.id, name=call.name, content=text, is_error=True)


def _unknown(name: str, agent: AgentSpec[Any]) -> str:
    known = ", ".join(agent.callees) or "none"
    return f"There is no tool {name!r}. Tools: {known}."


def error_text(error: ActivityError) -> str:
    """Return what a model is told of a failure: its type and message, never a traceback."""
    failure = error.failure
    if isinstance(failure, Failure):
        return f"{failure.type}: {failure.message}" if failure.message else failure.type
    return error.message
