"""Durable AI agents: an agent loop as an ordinary ``async def``, every paid call recorded once.

The map of the package, from the outside in:

    app           settings → store, providers, worker: open(), connect(), run_sync()
    client        start, find, watch and steer runs
    worker        owns runs by a lease, runs activities, hands batches over
    agents        Agent: model, instructions, tools, limits; the turn loop; keep_last, summarise
    activities    llm_call: the model call whose outcome is recorded
    tools         @tool: an activity that a model may call
    ledger        what it cost: prices, lines, reports
    llm           Message, Messages, ImagePart; requests, responses, usage: vendor-neutral
    timetable     when schedules are due
    engine        what happens next: the deterministic loop, keys, replay
    history       what happened: the closed union of events
    storage       where it is kept (SQLAlchemy)
    providers     one LLM vendor a file

Names are loaded when they are first used: importing agentflow loads no SDK and no database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentflow.loading import lazy as _lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agentflow.agents.agent import Agent, AgentResult
    from agentflow.app import Flow, connect, open, run_sync
    from agentflow.client import Client, Run
    from agentflow.engine.context import Decision, RunInfo
    from agentflow.engine.definition import ActivityContext
    from agentflow.engine.definitions import Activity, Workflow, activity, workflow
    from agentflow.engine.functions import (
        ChildRun,
        approve,
        continue_as_new,
        expose,
        logger,
        now,
        patched,
        random,
        run_info,
        set_attributes,
        signals,
        start_child,
        uuid4,
        wait_signal,
    )
    from agentflow.engine.limits import Limits
    from agentflow.errors import (
        ActivityError,
        AgentflowError,
        ApprovalDeniedError,
        Fail,
        InDoubtError,
        LimitError,
        NonRetryableError,
        RetryLater,
        RunCancelledError,
        RunFailedError,
        RunParkedError,
    )
    from agentflow.llm.request import ModelSettings
    from agentflow.retry import RetryPolicy
    from agentflow.tools.tool import Tool, tool

_ERRORS = (
    "ActivityError", "AgentflowError", "ApprovalDeniedError", "Fail", "InDoubtError", "LimitError",
    "NonRetryableError", "RetryLater", "RunCancelledError", "RunFailedError", "RunParkedError",
)  # fmt: skip
_FUNCTIONS = (
    "ChildRun", "approve", "continue_as_new", "expose", "logger", "now", "patched", "random",
    "run_info", "set_attributes", "signals", "start_child", "uuid4", "wait_signal",
)  # fmt: skip
_HOMES: dict[str, str] = {
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(_FUNCTIONS, "engine.functions"),
    **dict.fromkeys(("Agent", "AgentResult"), "agents.agent"),
    **dict.fromkeys(("Flow", "connect", "open", "run_sync"), "app"),
    **dict.fromkeys(("Client", "Run"), "client"),
    **dict.fromkeys(("Decision", "RunInfo"), "engine.context"),
    **dict.fromkeys(("Activity", "Workflow", "activity", "workflow"), "engine.definitions"),
    "ActivityContext": "engine.definition",
    "Limits": "engine.limits",
    "ModelSettings": "llm.request",
    "RetryPolicy": "retry",
    **dict.fromkeys(("Tool", "tool"), "tools.tool"),
}

__all__ = [
    "Activity",
    "ActivityContext",
    "ActivityError",
    "Agent",
    "AgentResult",
    "AgentflowError",
    "ApprovalDeniedError",
    "ChildRun",
    "Client",
    "Decision",
    "Fail",
    "Flow",
    "InDoubtError",
    "LimitError",
    "Limits",
    "ModelSettings",
    "NonRetryableError",
    "RetryLater",
    "RetryPolicy",
    "Run",
    "RunCancelledError",
    "RunFailedError",
    "RunInfo",
    "RunParkedError",
    "Tool",
    "Workflow",
    "activity",
    "approve",
    "connect",
    "continue_as_new",
    "expose",
    "logger",
    "now",
    "open",
    "patched",
    "random",
    "run_info",
    "run_sync",
    "set_attributes",
    "signals",
    "start_child",
    "tool",
    "uuid4",
    "wait_signal",
    "workflow",
]

if not TYPE_CHECKING:  # else any name would pass the type checkers
    __getattr__ = _lazy(globals(), _HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
