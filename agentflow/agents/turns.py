"""The turn loop: an ordinary part of a workflow, on the one door and plain asyncio.

A turn is one answer of a model and the tool calls that it asked for. Each model call and each
tool call is an activity of its own, so that a crash in between repeats none of them.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from agentflow.agents.input import message_of
from agentflow.agents.limits import Meter
from agentflow.agents.result import AgentResult, Tally
from agentflow.agents.sharing import rejoined
from agentflow.agents.spec import AgentSpec, Output, check_cache
from agentflow.agents.tool_calls import ToolCalls
from agentflow.dataclass import dataclass
from agentflow.engine.context import ActivityCall, Context, require_context
from agentflow.engine.definition import Latency
from agentflow.engine.functions import logger
from agentflow.engine.limits import Limits
from agentflow.errors import (
    ActivityError,
    ActivityTimeoutError,
    AnswerCutError,
    MaxTurnsError,
    ModelRefusedError,
    OutputError,
    ProviderError,
)
from agentflow.history.failure import Failure
from agentflow.llm.messages import Messages, ReasoningPart, user
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.tools.output import parse_output

_NUDGE = "Your answer was empty. Answer the question, or call a tool."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """What one call of an agent wants of the cache across runs; None = as each agent says."""

    cache: Literal["project", "off"] | None = None
    ttl: timedelta | None = None

    def ttl_for(self, agent: AgentSpec[Any]) -> timedelta | None:
        """Return how old an answer may be; None = the model is always asked.

        Raises:
            UsageError: see `check_cache`.
        """
        cache = self.cache or agent.cache
        if cache is None or cache == "off":
            return None
        ttl = self.ttl or agent.cache_ttl
        check_cache(agent.name, cache, ttl, agent.settings)
        return ttl


_AS_AGENTS_SAY = Reuse()


async def run_turns(
    agent: AgentSpec[Output],
    input: object,
    *,
    conversation: Messages | None = None,
    key: str | None = None,
    latency: Latency | None = None,
    reuse: Reuse = _AS_AGENTS_SAY,
    limits: Limits | None = None,
    above: Meter | None = None,
) -> AgentResult[Output]:
    """Run an agent until it answers; see `Agent.run`."""
    context = require_context("Agent.run")
    before = Messages() if conversation is None else conversation
    chat = before.append(message_of(input))
    meter = Meter(agent.name, agent.limits if limits is None else limits, above)
    turns = _Turns(
        context, agent, chat, input=input, key=key, latency=latency, reuse=reuse, meter=meter
    )
    longest = meter.limits.wall_clock
    if longest is None:
        return await turns.run()
    scope = asyncio.timeout(longest.total_seconds())  # a durable timer
    try:
        async with scope:
            return await turns.run()
    except TimeoutError:
        if scope.expired():
            raise meter.passed("wall_clock", longest, longest) from None
        raise


@dataclass(frozen=True, slots=True)
class _Answer:
    """The final answer."""

    output: Any


class _Turns:
    """One `Agent.run` on its way.

    Attributes:
        agent: Who speaks now; hand-offs change it.
        chat: The conversation so far.
    """

    def __init__(
        self,
        context: Context,
        agent: AgentSpec[Any],
        chat: Messages,
        *,
        input: object,
        key: str | None,
        latency: Latency | None,
        reuse: Reuse,
        meter: Meter,
    ) -> None:
        self.agent = agent
        self.chat = chat
        self._context = context
        self._input = input
        self._key = key
        self._latency = latency
        self._reuse = reuse
        self._meter = meter
        self._counts: dict[str, int] = {}
        self._tally = Tally()
        self._turn = 0
        self._limit = agent.max_turns  # hand-offs go round in circles at most this often
        self._empty_before = False

    async def run(self) -> AgentResult[Any]:
        await self._enter(self.agent)
        while self._turn < self._limit:
            self._turn += 1
            response = await self._ask()
            self._tally.answered(response)
            self._meter.answered(response)
            found = await self._take(response)
            if found is not None:
                return self._result(found.output)
        raise MaxTurnsError(
            f"agent {self.agent.name} did not finish within {self._limit} turns",
            data={"agent": self.agent.name, "turns": self._turn},
        )

    def _result(self, output: Any) -> AgentResult[Any]:
        return AgentResult(
            output=output,
            messages=self.chat,
            usage=self._tally.usage,
            cost_usd=self._tally.cost_usd,
            agent=self.agent.name,
            model=self._models[0],
            turns=self._turn,
        )

    # --- the question -----------------------------------------------------------------------

    async def _enter(self, agent: AgentSpec[Any]) -> None:
        """Let *agent* speak from here on."""
        self.agent = agent
        self._models = [agent.model, *agent.fallbacks]
        self._choice = agent.tool_choice if agent.callees else "auto"
        said = agent.instructions
        if callable(said):
            made = said(self._input)
            said = await made if inspect.isawaitable(made) else made
        self._instructions = said
        self._tools = ToolCalls(
            context=self._context,
            agent=agent,
            tally=self._tally,
            key_of=self._next_key,
            run_agent=self._run_agent,
        )

    async def _ask(self) -> ModelResponse:
        """Ask the model, or the next one where it fails for good."""
        agent = self.agent
        if agent.compact is not None:
            made = agent.compact(self.chat)
            self.chat = rejoined(self.chat, await made if inspect.isawaitable(made) else made)
        request = ModelRequest(
            model=self._models[0],
            messages=self.chat,
            instructions=self._instructions,
            tools=agent.tool_specs,
            tool_choice=self._choice,
            output=agent.output_schema,
            settings=agent.asked_settings,
        )
        self._choice = "auto" if self._choice != "none" else "none"  # forced once, or for ever
        while True:
            try:
                return await self._call(request)
            except ActivityError as e:
                if len(self._models) == 1 or not is_models_fault(e):
                    raise
                failed = self._models.pop(0)  # for the rest of this run: it would fail again
                extra = {"model": failed, "fallback": self._models[0], "agent": agent.name}
                logger.warning("model failed, asking the next one", extra=extra)
                request = replace(request, model=self._models[0])

    async def _run_agent(
        self, agent: AgentSpec[Any], input: str, key: str | None
    ) -> AgentResult[Any]:
        return await run_turns(agent, input, key=key, above=self._meter)

    async def _call(self, request: ModelRequest) -> ModelResponse:
        self._meter.before_call()
        llm = self.agent.llm
        asked = ActivityCall(
            activity=llm if self._latency is None else llm.with_options(latency=self._latency),
            arguments={"request": request},
            key=self._next_key("llm_call"),
            label=self.agent.name,
            cache_ttl=self._reuse.ttl_for(self.agent),
        )
        response: ModelResponse = await self._context.call(asked)
        return response

    def _next_key(self, name: str) -> str | None:
        """Return the next explicit key of *name* in this run of the agent, if it has one."""
        if self._key is None:
            return None
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return f"{self._key}/{name}#{count}"

    # --- the answer -------------------------------------------------------------------------

    async def _take(self, response: ModelResponse) -> _Answer | None:
        """Take an answer in; return what it comes to where it is the last one."""
        message, agent = response.message, self.agent
        _refuse(response, agent)
        calls = message.tool_calls
        for call in calls:
            self._meter.tool_asked(call)
        if calls:
            self._empty_before = False
            answers = await self._tools.answer(calls)
            self.chat = self.chat.append(message, user(*answers.parts))
            if answers.goes_to is not None:
                await self._enter(answers.goes_to)
            return None
        if not message.text.strip():
            self._nudge(response)
            return None
        self._empty_before = False
        self.chat = self.chat.append(message)
        try:
            return _Answer(parse_output(agent.output_type, message.text))
        except OutputError as e:
            self.chat = self.chat.append(user(e.message))
            return None

    def _nudge(self, response: ModelResponse) -> None:
        """Say once that the answer was empty; a model that does it again will not stop.

        Raises:
            OutputError: it was empty before.
        """
        if self._empty_before:
            raise OutputError(
                f"agent {self.agent.name}: {response.model} answered twice with nothing",
                hint="Look at its instructions and tools, or use another model.",
            )
        self._empty_before = True
        if any(not isinstance(part, ReasoningPart) for part in response.message.parts):
            self.chat = self.chat.append(response.message)  # vendors refuse reasoning alone
        self.chat = self.chat.append(user(_NUDGE))


def _refuse(response: ModelResponse, agent: AgentSpec[Any]) -> None:
    """Raise where the answer is no answer.

    Raises:
        ModelRefusedError: the model or its vendor said no. AnswerCutError: it is not whole.
    """
    who = f"agent {agent.name}: {response.model}"
    if response.finish in {"refusal", "content_filter"}:
        text = response.message.text.strip()
        what = "refused" if response.finish == "refusal" else "was stopped by its vendor's filter"
        raise ModelRefusedError(f"{who} {what}{f': {text}' if text else ''}")
    if response.finish == "length" and not response.message.tool_calls:
        raise AnswerCutError(f"{who} was cut off at its output limit")


def is_models_fault(error: ActivityError) -> bool:
    """Return whether a model call failed at the vendor, so that another model may answer."""
    failure = error.failure
    code = failure.code if isinstance(failure, Failure) else error.code
    return code in {ProviderError.code, ActivityTimeoutError.code}
