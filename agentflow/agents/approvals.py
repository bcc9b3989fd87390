"""Approval per tool: what the person is asked, and what the model is told of a no.

The engine binds an approval to the hash of the exact call and lets it be used once, in the
transaction that writes the intent. Here are only the words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentflow.engine.context import ActivityCall
from agentflow.errors import ApprovalDeniedError
from agentflow.tools.tool import Tool


def call_of(
    tool: Tool[..., Any], arguments: Mapping[str, Any], *, agent: str, key: str | None
) -> ActivityCall:
    """Return the call that an agent makes of *tool*, with the question where one is due."""
    asked = tool.asked(arguments)
    question = question_of(tool, arguments, agent) if asked.needs_approval else ""
    return replace(asked, key=key or asked.key, label=asked.label or agent, question=question)


def question_of(tool: Tool[..., Any], arguments: Mapping[str, Any], agent: str) -> str:
    """Return what a person is asked; they see the whole arguments beside it.

    For example ``writer wants to call publish(report={"title": "…"}). Allow it?``
    """
    return f"{agent} wants to call {tool.call_text(arguments)}. Allow it?"


def denial_text(error: ApprovalDeniedError) -> str:
    """Return what the model is told of a call that was denied."""
    return f"{error.message}. Do not call it again with the same arguments."
