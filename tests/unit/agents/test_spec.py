"""What is wrong with an agent is said where the agent is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from agentflow.agents.agent import Agent, AgentResult
from agentflow.engine.definitions import activity
from agentflow.errors import UnknownModelError, UsageError
from agentflow.llm.request import ModelSettings, ToolSpec
from agentflow.retry import MODEL_RETRY
from agentflow.tools.tool import tool


class Report(BaseModel):
    """A report."""

    title: str


@tool
async def ask_library(query: str) -> str:
    """Search."""
    return query


@activity
async def ask_nobody(query: str) -> str:
    """Do something."""
    return query


OTHER = Agent("other", model="scripted:s", description="Knows more.")


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"name": " "}, "needs a name"),
        ({"max_turns": 0}, "max_turns is 0"),
        ({"tools": [ask_nobody]}, "@tool instead of @activity"),
        ({"tools": [OTHER]}, "as_tool"),
        ({"tools": [len]}, "Decorate it with @tool"),
        ({"tool_choice": "fly"}, "none of its tools"),
    ],
)
def test_a_wrong_term_is_refused_at_once(terms: dict[str, Any], words: str) -> None:
    """Before anything runs."""
    with pytest.raises(UsageError) as caught:
        Agent(**{"name": "a", "model": "scripted:s", **terms})

    assert words in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("model", ["gpt-6", ":x", "openai:"])
def test_a_model_is_written_with_its_provider(model: str) -> None:
    """Fallbacks, too."""
    with pytest.raises(UnknownModelError, match="provider:name"):
        Agent("a", model=model)
    with pytest.raises(UnknownModelError, match="provider:name"):
        Agent("a", model="scripted:s", fallbacks=[model])


def test_two_tools_of_one_name_are_refused() -> None:
    """A model could not tell them apart."""
    agent = Agent("a", model="scripted:s", tools=[ask_library, OTHER.as_tool("ask_library")])

    with pytest.raises(UsageError, match="two tools called 'ask_library'"):
        _ = agent.callees


def test_a_handoff_keeps_the_type_of_the_answer() -> None:
    """The result's annotation says what it is."""
    agent = Agent("a", model="scripted:s", output_type=Report, handoffs=[OTHER])

    with pytest.raises(UsageError, match="output_type differs"):
        _ = agent.callees


def test_what_a_model_sees_of_other_agents() -> None:
    """Names that vendors take, and descriptions."""
    helper = Agent("Fact checker", model="scripted:s")
    agent = Agent("a", model="scripted:s", tools=[helper.as_tool()], handoffs=[OTHER])

    asked, handed = agent.tool_specs
    assert (asked.name, asked.description) == ("Fact_checker", "Ask the agent Fact checker.")
    assert list(asked.parameters["properties"]) == ["input"]
    assert handed == ToolSpec(
        name="transfer_to_other",
        description="Hand the conversation over to other. Knows more.",
        parameters={
            "type": "object",
            "properties": {},
            "required": [],
            "additionalProperties": False,
        },
        strict=True,
    )


def test_the_terms_of_a_model_call_are_the_agents() -> None:
    """A number of tries keeps the patience of model calls."""
    agent = Agent("a", model="scripted:s", retry=2, timeout=30)

    assert agent.llm.options.retry == replace(MODEL_RETRY, max_attempts=2)
    assert agent.llm.options.timeout == timedelta(seconds=30)
    assert OTHER.llm.options.retry == MODEL_RETRY
    assert OTHER.llm.options.timeout is None


def test_one_tool_a_turn_is_asked_for_only_where_there_are_tools() -> None:
    """And never against a setting of one's own."""
    own = ModelSettings(parallel_tool_calls=True)
    alone = Agent("a", model="scripted:s", parallel_tools=False)
    with_tool = Agent("a", model="scripted:s", parallel_tools=False, tools=[ask_library])

    assert alone.asked_settings == ModelSettings()
    assert with_tool.asked_settings == ModelSettings(parallel_tool_calls=False)
    assert replace(with_tool, settings=own).asked_settings == own


def test_an_agent_is_typed_by_its_output() -> None:
    """Text without `output_type`."""

    async def types() -> None:
        text = Agent("a", model="scripted:s")
        assert_type(text, Agent[str])
        assert_type(await text.run("q"), AgentResult[str])
        report = Agent("a", model="scripted:s", output_type=Report, tools=[ask_library])
        assert_type((await report.run("q")).output, Report)
        many = Agent("a", model="scripted:s", output_type=list[Report])
        assert_type((await many.run("q")).output, list[Report])

    assert types.__name__ == "types"
    assert repr(OTHER) == "<agent other scripted:s>"
