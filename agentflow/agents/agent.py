"""`Agent`: a frozen spec, and the way to run it inside a workflow."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from agentflow.agents.result import AgentResult
from agentflow.agents.spec import AgentSpec, AgentTool, Output, tool_name
from agentflow.agents.turns import Reuse, run_turns
from agentflow.dataclass import dataclass
from agentflow.engine.definition import Latency
from agentflow.engine.limits import Limits
from agentflow.llm.messages import Messages

__all__ = ["Agent", "AgentResult"]


@dataclass(frozen=True, eq=False, repr=False)
class Agent(AgentSpec[Output]):
    """A model with instructions and tools. It is data: make it once, at module level.

    Attributes:
        name: Its name, in logs, costs and hand-offs.
        model: ``provider:name``, such as ``openai:gpt-6-luna``.
        instructions: System prompt; or a function of the run's input that returns it, called in
            the workflow.
        tools: What the model may call: functions under @tool, and `as_tool` of other agents.
        output_type: Type of the answer. `str` is text; any other is asked for as JSON of that type.
        max_turns: Largest number of answers of models in one run, hand-offs included.
        fallbacks: Models that are asked in this order when the one before failed for good.
        tool_choice: ``auto``, ``none``, ``required``, or a tool's name: the last two for the first
            turn only.
        settings: How the model is asked.
        handoffs: Agents that may take the conversation over, of the same `output_type`; or a
            function that returns them, where two know each other.
        compact: Called before each model call with the conversation; what it returns replaces it.
            See `keep_last` and `summarise` in `agentflow.agents`.
        parallel_tools: Whether the tools of one turn run side by side; otherwise in order, and the
            model is asked for one at a time.
        description: What it is for; other agents' models read it.
        retry: Retry policy of a model call, or a number of tries.
        timeout: Longest time of one try, a timedelta or seconds.
        on_doubt: What happens to a model call that was in flight when its process died, and whose
            answer cannot be fetched from the vendor: ``retry`` (default; it may be paid twice),
            ``ask`` a person, or ``fail``.
        latency: How long answers may take: ``now``, or ``2h``, ``8h``, ``24h`` for less money; the
            run waits as one row meanwhile. None = as the run was started. A model that does not
            offer it fails the call, and says what it offers.
        cache: ``"project"``: a request that equals an earlier one of the project to the byte
            (conversation, parameters, model) is answered by that one's answer, and costs nothing;
            equal ones at the same time are asked once. None: only the run's own history answers.
        cache_ttl: How old such an answer may be.
        limits: What one run of it may use, with the agents that it calls: calls, tokens, depth,
            time, repeated tool calls.
    """

    async def run(
        self,
        input: object,
        *,
        conversation: Messages | None = None,
        key: str | None = None,
        latency: Latency | None = None,
        cache: Literal["project", "off"] | None = None,
        cache_ttl: timedelta | None = None,
        limits: Limits | None = None,
    ) -> AgentResult[Output]:
        """Ask, run the tools that the model calls, ask again, until it answers.

        Args:
            input: Text; a message; a list of text and parts, such as images; or anything with a
                JSON form, which the model sees as JSON.
            conversation: What was said before; `AgentResult.messages` of an earlier run.
            key: Explicit key for the calls of this run, unique in the workflow's run.
            latency: How long the answers of this run may take; the agent's own by default.
            cache: ``"project"`` or ``"off"`` for the model calls of this conversation; None = as
                each agent says.
            cache_ttl: How old an answer of the cache may be; None = as each agent says.
            limits: What this run of it may use; the agent's own by default.

        Returns:
            The answer, the conversation with it, and what it took.

        Raises:
            UsageError: it is not called in a workflow.
            MaxTurnsError: there was no answer within `max_turns`.
            LimitError: a limit was passed.
            ModelRefusedError: the model, or its vendor's filter, said no.
            AnswerCutError: the answer was cut at the output limit.
            OutputError: the model answered twice with nothing.
            ActivityError: the model, and all fallbacks, failed for good.
        """
        reuse = Reuse(cache=cache, ttl=cache_ttl)
        return await run_turns(
            self,
            input,
            conversation=conversation,
            key=key,
            latency=latency,
            reuse=reuse,
            limits=limits,
        )

    def as_tool(self, name: str | None = None, description: str | None = None) -> AgentTool:
        """Return this agent as a tool of another one.

        Each call is a conversation of its own, within the same run of the workflow; its calls are
        recorded like all others.

        Args:
            name: Name for the calling model; the agent's own by default.
            description: What it does, for the calling model; the agent's own by default.

        Returns:
            Something for ``tools=[…]``.
        """
        said = description or self.description or f"Ask the agent {self.name}."
        return AgentTool(self, name or tool_name(self.name), said)
