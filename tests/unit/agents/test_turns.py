"""The turn loop: what the model is asked, what is recorded, and what comes out.

Every history here is replayed from its bytes after every commit (see driver.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow.agents.agent import Agent, AgentResult
from agentflow.engine.definitions import Workflow, workflow
from agentflow.errors import (
    MaxTurnsError,
    NonRetryableError,
    ProviderError,
    UsageError,
)
from agentflow.history import events as ev
from agentflow.llm.messages import (
    ImagePart,
    Message,
    Messages,
    ReasoningPart,
    ToolCallPart,
    ToolResultPart,
    assistant,
    user,
)
from agentflow.llm.request import ModelSettings
from agentflow.llm.response import ModelResponse
from agentflow.providers.scripted import Script, attempts, call, estimate
from agentflow.tools.tool import tool
from tests.unit.agents.driver import Driven, Said, drive

DOWN = ProviderError("overloaded", retryable=False, status=529)


class Findings(BaseModel):
    """What was found."""

    facts: list[str]
    sure: bool = False


@tool(effect="read")
async def seek(query: str, limit: int = 2) -> list[str]:
    """Search the corpus.

    Args:
        query: Words to find.
        limit: Number of hits.
    """
    return [f"{query} {n}" for n in range(limit)]


@tool(effect="once", needs_approval=True, title="Publish")
async def post(title: str) -> str:
    """Publish a report."""
    return f"posted {title}"


@tool(needs_approval=lambda amount, **_: bool(amount > 100))
def reward(amount: int, to: str = "ann") -> str:
    """Pay somebody."""
    return f"{to} got {amount}"


@tool(retry=1)
async def breaks(reason: str) -> str:
    """Break."""
    if reason == "for good":
        raise NonRetryableError("no more\nsecond line")
    raise ValueError(reason)


@tool
def forget() -> None:
    """Return nothing."""


@tool
def look_up(name: str) -> Findings | None:
    """Look something up."""
    return Findings(facts=[name]) if name != "nobody" else None


def run_of(agent: Agent[Any]) -> Workflow[..., Any]:
    """Return a workflow that asks *agent* what it is given."""

    async def ask(question: Any) -> AgentResult[Any]:
        return await agent.run(question)

    ask.__annotations__ = {"question": Any, "return": AgentResult[agent.output_type]}  # type: ignore[name-defined]
    return Workflow(ask)


def asked(agent: Agent[Any], script: Script, question: Any = "why?", **terms: Any) -> Driven:
    """Run *agent* against one script."""
    return drive(run_of(agent), question, scripts={"s": script}, **terms)


def results(driven: Driven, turn: int = 1) -> list[tuple[str, bool]]:
    """Return (content, is_error) of the tool results that the model saw after a turn."""
    message = driven.requests[turn].messages[-1]
    return [(p.content, p.is_error) for p in message.parts if isinstance(p, ToolResultPart)]


def response(message: Message, finish: Any = "stop") -> Callable[..., ModelResponse]:
    """Return a turn with a finish of its own."""

    def turn(request: Any) -> ModelResponse:
        return ModelResponse(
            message=message, finish=finish, model=request.model, usage=estimate(request, message)
        )

    return turn


# --- answers --------------------------------------------------------------------------------


def test_a_text_answer_is_the_output() -> None:
    """One turn, one recorded call, labelled with the agent's name."""
    driven = asked(Agent("poet", model="scripted:s", instructions="Rhyme."), ["Because."])

    result = driven.value
    assert (result.output, result.agent, result.turns) == ("Because.", "poet", 1)
    assert list(result.messages) == [user("why?"), assistant("Because.")]
    assert result.cost_usd == Decimal("0.01")
    assert result.usage.output_tokens > 0
    assert driven.keys() == ["0/llm_call#1"]
    assert driven.requests[0].instructions == "Rhyme."
    assert [(r.kind, r.name, r.status) for r in driven.ledger] == [("model", "poet", "ok")]


def test_a_structured_answer_is_a_value_of_its_type() -> None:
    """The schema is sent; the answer is parsed in the workflow."""
    agent = Agent("finder", model="scripted:s", output_type=Findings)
    driven = asked(agent, ['{"facts": ["a"], "sure": null}'])

    assert driven.value.output == Findings(facts=["a"])
    assert driven.requests[0].output is not None
    assert driven.requests[0].output.name == "Findings"


def test_an_answer_that_does_not_fit_goes_back_to_the_model() -> None:
    """The misfit is the next message, and counts as a turn."""
    agent = Agent("finder", model="scripted:s", output_type=Findings)
    driven = asked(agent, ["sure!", '{"facts": [1]}', '{"facts": ["a"]}'])

    assert driven.value.output == Findings(facts=["a"])
    assert driven.value.turns == 3
    assert "not valid JSON" in driven.requests[1].messages[-1].text
    assert "facts[0]: Input should be a valid string; got 1" in driven.requests[2].messages[-1].text


def test_any_input_with_a_json_form_is_asked_as_json() -> None:
    """A value that is no text is shown to the model as JSON; a result as its output."""

    @dataclass
    class Task:
        topic: str

    image = ImagePart(url="https://example.org/a.png")
    agent = Agent("echo", model="scripted:s")

    async def ask() -> str:
        first = await agent.run(Task("ü"))
        await agent.run(first)
        await agent.run(["a", "b"])
        await agent.run(["look:", image])
        return first.output

    driven = drive(workflow(name="ask_json")(ask), scripts={"s": lambda _: "ok"})

    assert [r.messages[0] for r in driven.requests] == [
        user('{"topic": "ü"}'),
        user("ok"),
        user('["a", "b"]'),
        user("look:", image),
    ]


def test_instructions_may_be_a_function_of_the_input() -> None:
    """It is called in the workflow, once."""
    agent = Agent("poet", model="scripted:s", instructions=lambda q: f"About {q}.", tools=[seek])
    driven = asked(agent, [call("seek", query="x"), "ok"])

    assert [r.instructions for r in driven.requests] == ["About why?."] * 2


# --- tools ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_tools_of_a_turn_run_side_by_side_in_the_order_of_the_calls(*, backwards: bool) -> None:
    """Each is its own activity in its own task; results keep the order, whoever was first."""
    agent = Agent("finder", model="scripted:s", tools=[seek, forget])
    script: Script = [
        [call("seek", query="a", limit=1), call("forget"), call("seek", query="b")],
        "done",
    ]
    driven = asked(agent, script, backwards=backwards)

    assert driven.value.output == "done"
    assert driven.keys() == [
        "0/llm_call#1",
        "0.1/seek#1",
        "0.2/forget#1",
        "0.3/seek#1",
        "0/llm_call#2",
    ]
    assert results(driven) == [('["a 0"]', False), ("Done.", False), ('["b 0", "b 1"]', False)]
    started = [e.seq for e in driven.log if isinstance(e, ev.ActivityStarted)]
    ended = [e.seq for e in driven.log if isinstance(e, ev.ActivityCompleted)]
    assert max(started[1:4]) < min(ended[1:4])


def test_tools_run_in_order_where_they_must_not_run_in_parallel() -> None:
    """One starts when the one before has ended, and the vendor is asked for one at a time."""
    agent = Agent("finder", model="scripted:s", tools=[seek], parallel_tools=False)
    script: Script = [[call("seek", query="a"), call("seek", query="b")], "done"]
    driven = asked(agent, script)

    assert driven.keys()[1:3] == ["0/seek#1", "0/seek#2"]
    assert driven.requests[0].settings == ModelSettings(parallel_tool_calls=False)


def test_a_result_is_text_as_it_is_and_json_otherwise() -> None:
    """None of an optional type is null; models are JSON of their declared type."""
    agent = Agent("finder", model="scripted:s", tools=[look_up, reward])
    script: Script = [
        [call("look_up", name="x"), call("look_up", name="nobody"), call("reward", amount=1)],
        "done",
    ]
    driven = asked(agent, script)

    assert results(driven) == [
        ('{"facts": ["x"], "sure": false}', False),
        ("null", False),
        ("ann got 1", False),
    ]


def test_arguments_that_do_not_fit_go_back_to_the_model() -> None:
    """No activity is recorded; the keys of the other calls do not depend on it."""
    agent = Agent("finder", model="scripted:s", tools=[seek])
    script: Script = [
        [call("seek", limit="many"), call("seek", query="a")],
        Message(
            role="assistant", parts=(ToolCallPart(id="1", name="seek", arguments='{"query": "'),)
        ),
        "done",
    ]
    driven = asked(agent, script)

    (misfit, is_error), fine = results(driven)
    assert misfit.splitlines()[1:] == [
        "query: required, but missing",
        'limit: Input should be a valid integer, unable to parse string as an integer; got "many"',
    ]
    assert is_error
    assert fine == ('["a 0", "a 1"]', False)
    assert driven.keys() == ["0/llm_call#1", "0.2/seek#1", "0/llm_call#2", "0/llm_call#3"]
    assert "not valid JSON" in results(driven, 2)[0][0]


def test_a_tool_that_does_not_exist_is_told_to_the_model() -> None:
    """With the names of those that do."""
    driven = asked(Agent("a", model="scripted:s", tools=[seek]), [call("fly"), "ok"])

    assert results(driven) == [("There is no tool 'fly'. Tools: seek.", True)]


@pytest.mark.parametrize(
    ("reason", "text"),
    [("no luck", "ValueError: no luck"), ("for good", "NonRetryableError: no more\nsecond line")],
)
def test_a_tool_that_fails_is_told_to_the_model(reason: str, text: str) -> None:
    """Type and message, no traceback; the run goes on."""
    driven = asked(
        Agent("a", model="scripted:s", tools=[breaks]), [call("breaks", reason=reason), "ok"]
    )

    assert results(driven) == [(text, True)]
    assert driven.value.output == "ok"


def test_a_forced_tool_is_forced_once() -> None:
    """Forced for ever, the model could never answer."""
    agent = Agent("a", model="scripted:s", tools=[seek], tool_choice="seek")
    driven = asked(agent, [call("seek", query="a"), "ok"])

    assert [r.tool_choice for r in driven.requests] == ["seek", "auto"]


# --- approvals ------------------------------------------------------------------------------


def test_an_approved_call_runs() -> None:
    """The person sees who wants what; the call waits until then."""
    agent = Agent("writer", model="scripted:s", tools=[post])
    driven = asked(agent, [call("post", title="x"), "ok"])

    assert driven.questions == ['writer wants to call Publish (post): title="x". Allow it?']
    assert results(driven) == [("posted x", False)]


def test_a_denied_call_is_told_to_the_model() -> None:
    """With who said no, and why; nothing ran."""
    agent = Agent("writer", model="scripted:s", tools=[post])
    said = Said("denied", reason="not today")
    driven = asked(agent, [call("post", title="x"), "ok"], decide=lambda _: said)

    ((text, is_error),) = results(driven)
    assert text.startswith("post was denied by ann: not today")
    assert is_error
    assert driven.keys(ev.ActivityStarted) == ["0/llm_call#1", "0/llm_call#2"]


def test_edited_arguments_are_those_that_run() -> None:
    """The history keeps both what was asked and what was allowed."""
    agent = Agent("writer", model="scripted:s", tools=[post])
    said = Said(edited={"title": "y"})
    driven = asked(agent, [call("post", title="x"), "ok"], decide=lambda _: said)

    assert results(driven) == [("posted y", False)]


def test_a_rule_decides_which_calls_need_approval() -> None:
    """It sees the arguments, defaults included; calls that need none do not wait."""
    agent = Agent("payer", model="scripted:s", tools=[reward])
    driven = asked(agent, [[call("reward", amount=500), call("reward", amount=5)], "ok"])

    assert driven.questions == ["payer wants to call reward(amount=500). Allow it?"]
    assert results(driven) == [("ann got 500", False), ("ann got 5", False)]


# --- models that fail, refuse, or say nothing -----------------------------------------------


def test_a_fallback_answers_where_the_model_failed_for_good() -> None:
    """Each is a recorded call; the one that failed is not asked again in this run."""
    agent = Agent("a", model="scripted:down", fallbacks=["scripted:s"], tools=[seek])
    script: Script = [call("seek", query="x"), "ok"]
    driven = drive(run_of(agent), "q", scripts={"down": lambda _: DOWN, "s": script})

    assert driven.value.output == "ok"
    assert driven.value.model == "scripted:s"
    assert [r.model for r in driven.requests] == ["scripted:down", "scripted:s", "scripted:s"]
    assert [r.status for r in driven.ledger] == ["error", "ok", "ok"]
    assert driven.value.cost_usd == Decimal("0.02")


def test_without_a_fallback_the_vendors_error_ends_the_run() -> None:
    """As an ActivityError, with what the vendor said."""
    driven = asked(Agent("a", model="scripted:s"), lambda _: DOWN)

    assert driven.status == "failed"
    assert driven.failure is not None
    assert (driven.failure.code, driven.failure.message) == ("AF820", "overloaded")


def test_a_vendors_hiccup_is_tried_again() -> None:
    """By the call's retry policy; the ledger has both attempts."""
    hiccup = attempts(ProviderError("busy", retryable=True, status=429, sent=False), "ok")
    driven = asked(Agent("a", model="scripted:s"), [hiccup])

    assert driven.value.output == "ok"
    assert [(r.status, r.priced.status) for r in driven.ledger] == [
        ("error", "not_billed"),
        ("ok", "priced"),
    ]


def test_retry_is_a_term_of_the_agent() -> None:
    """One try means one request."""
    busy = ProviderError("busy", retryable=True, status=429)
    driven = asked(Agent("a", model="scripted:s", retry=1), lambda _: busy)

    assert driven.status == "failed"
    assert len(driven.requests) == 1


def test_a_refusal_ends_the_run_with_the_models_words() -> None:
    """A refusal is no answer."""
    driven = asked(Agent("a", model="scripted:s"), [response(assistant("I won't."), "refusal")])

    assert driven.failure is not None
    assert driven.failure.code == "AF807"
    assert driven.failure.message == "agent a: scripted:s refused: I won't."


def test_an_answer_that_was_cut_is_an_error_with_a_hint() -> None:
    """Half an answer is not passed on as a whole one."""
    driven = asked(Agent("a", model="scripted:s"), [response(assistant("Beca"), "length")])

    assert driven.failure is not None
    assert driven.failure.code == "AF808"
    assert "max_output_tokens" in driven.failure.hint


def test_an_empty_answer_is_nudged_once() -> None:
    """The model is told; what it answers then counts."""
    driven = asked(Agent("a", model="scripted:s"), ["  ", "ok"])

    assert driven.value.output == "ok"
    assert "empty" in driven.requests[1].messages[-1].text


def test_a_model_that_answers_nothing_twice_is_an_error() -> None:
    """It would go on for ever, and each turn is paid."""
    thought = Message(role="assistant", parts=(ReasoningPart(provider="scripted", raw={}),))
    driven = asked(Agent("a", model="scripted:s"), response(thought))

    assert driven.failure is not None
    assert driven.failure.code == "AF806"
    assert len(driven.requests) == 2
    assert [m.role for m in driven.requests[1].messages] == ["user", "user"]


def test_an_agent_that_never_answers_stops_at_max_turns() -> None:
    """Every turn is recorded; the error says whose limit it was."""
    agent = Agent("a", model="scripted:s", tools=[seek], max_turns=3)
    driven = asked(agent, lambda _: call("seek", query="x"))

    assert driven.failure is not None
    assert driven.failure.code == MaxTurnsError.code
    assert driven.failure.message == "agent a did not finish within 3 turns"
    assert len(driven.requests) == 3


def test_cost_is_unknown_where_a_part_is() -> None:
    """Never zero, never a lower bound."""

    def silent(request: Any) -> ModelResponse:
        return ModelResponse(
            message=assistant("ok"), finish="stop", model=request.model, usage=None
        )

    driven = asked(Agent("a", model="scripted:s"), [silent])

    assert driven.value.cost_usd is None
    assert [r.priced.status for r in driven.ledger] == ["unknown_usage"]


# --- several agents -------------------------------------------------------------------------


def test_an_agent_can_be_a_tool() -> None:
    """It runs inside the same run, under the lineage of the task that called it."""
    expert = Agent("Fact checker", model="scripted:expert", tools=[seek], output_type=Findings)
    chief = Agent("chief", model="scripted:s", tools=[expert.as_tool(), seek])
    ask: Script = [[call("Fact_checker", input="check x"), call("seek", query="y")], "ok"]
    check: Script = [call("seek", query="x"), '{"facts": ["x"]}']
    driven = drive(run_of(chief), "q", scripts={"s": ask, "expert": check})

    assert driven.value.output == "ok"
    assert driven.keys() == [
        "0/llm_call#1",
        "0.1/llm_call#1",
        "0.2/seek#1",
        "0.1/seek#1",
        "0.1/llm_call#2",
        "0/llm_call#2",
    ]
    assert driven.requests[1].messages[0] == user("check x")
    last = driven.requests[-1].messages[-1].parts
    assert isinstance(last[0], ToolResultPart)
    assert last[0].content == '{"facts": ["x"], "sure": false}'
    assert driven.value.cost_usd == Decimal("0.04")
    assert [r.name for r in driven.ledger if r.kind == "model"].count("Fact checker") == 2


def test_max_turns_of_an_agent_called_as_a_tool_ends_the_caller_too() -> None:
    """As itself, not as a group of exceptions that user code would have to take apart."""
    lost = Agent("lost", model="scripted:lost", tools=[seek], max_turns=1)
    chief = Agent("chief", model="scripted:s", tools=[lost.as_tool(), seek])

    @workflow
    async def careful() -> str:
        try:
            return (await chief.run("q")).output
        except MaxTurnsError as e:
            return e.message

    ask: Script = [[call("lost", input="x"), call("seek", query="y")], "ok"]
    driven = drive(careful, scripts={"s": ask, "lost": lambda _: call("seek", query="z")})

    assert driven.value == "agent lost did not finish within 1 turns"


def test_a_handoff_gives_the_conversation_to_another_agent() -> None:
    """With its own instructions, tools and model; the result says who answered."""
    billing = Agent("billing", model="scripted:billing", instructions="Bill.", tools=[reward])
    desk = Agent("desk", model="scripted:s", instructions="Greet.", handoffs=[billing])
    driven = drive(
        run_of(desk),
        "refund me",
        scripts={
            "s": [call("transfer_to_billing")],
            "billing": ["", call("reward", amount=7), "paid"],
        },
    )

    assert (driven.value.output, driven.value.agent, driven.value.turns) == ("paid", "billing", 3)
    assert [(r.model, r.instructions) for r in driven.requests] == [
        ("scripted:s", "Greet."),
        ("scripted:billing", "Bill."),
        ("scripted:billing", "Bill."),
    ]
    assert driven.requests[1].messages[0] == user("refund me")
    assert [t.name for t in driven.requests[1].tools] == ["reward"]


def test_agents_that_hand_over_in_circles_stop_at_the_first_ones_max_turns() -> None:
    """Two may know each other through a function."""
    ping: Agent = Agent("ping", model="scripted:ping", handoffs=lambda: [pong], max_turns=4)
    pong: Agent = Agent("pong", model="scripted:pong", handoffs=lambda: [ping])
    driven = drive(
        run_of(ping),
        "go",
        scripts={
            "ping": lambda _: [call("transfer_to_pong"), call("transfer_to_pong")],
            "pong": lambda _: call("transfer_to_ping"),
        },
    )

    assert driven.failure is not None
    assert driven.failure.code == MaxTurnsError.code
    assert len(driven.requests) == 4
    assert results(driven)[1] == ("The conversation was handed over already.", True)


# --- conversations and keys -----------------------------------------------------------------


def test_a_conversation_is_carried_on_across_runs() -> None:
    """`messages` goes through a workflow's result and input, and is stored once."""
    agent = Agent("a", model="scripted:s")

    @workflow
    async def talk(before: Messages, text: str) -> AgentResult:
        return await agent.run(text, conversation=before)

    script: Script = ["one", "two"]
    first = drive(talk, Messages(), "1", scripts={"s": script})
    second = drive(talk, first.value.messages, "2", scripts={"s": script})

    assert second.value.output == "two"
    assert [m.text for m in second.value.messages] == ["1", "one", "2", "two"]


def test_an_explicit_key_names_all_calls_of_a_run() -> None:
    """Agents called as tools are named under it."""
    expert = Agent("expert", model="scripted:expert", tools=[seek])
    chief = Agent("chief", model="scripted:s", tools=[expert.as_tool(), seek])

    @workflow
    async def keyed() -> str:
        return (await chief.run("q", key="item 7")).output

    ask: Script = [
        [call("seek", query="y"), call("expert", input="x"), call("seek", query="z")],
        "ok",
    ]
    driven = drive(keyed, scripts={"s": ask, "expert": [call("seek", query="x"), "fine"]})

    assert sorted(driven.keys()) == [
        "@item 7/expert#1/llm_call#1",
        "@item 7/expert#1/llm_call#2",
        "@item 7/expert#1/seek#1",
        "@item 7/llm_call#1",
        "@item 7/llm_call#2",
        "@item 7/seek#1",
        "@item 7/seek#2",
    ]


def test_storage_grows_with_the_messages_and_not_with_their_square() -> None:
    """Each turn adds one row for each new message, and nothing for the old ones."""
    agent = Agent("a", model="scripted:s", tools=[seek], max_turns=60)
    turns: list[Any] = [call("seek", query=f"{n}") for n in range(50)]
    driven = asked(agent, [*turns, "ok"], checked=False)

    assert len(driven.value.messages) == 102
    assert len(driven.memory.nodes) == 102
    assert driven.memory.node_writes == 102


def test_an_agent_runs_only_in_a_workflow() -> None:
    """The error says where it works."""
    coroutine = Agent("a", model="scripted:s").run("q")

    with pytest.raises(UsageError, match="only inside a workflow"):
        coroutine.send(None)
