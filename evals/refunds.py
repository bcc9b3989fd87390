"""A durable eval: each case x trial is a run of its own, each answer and each cent is recorded.

    python evals/refunds.py                                  # a scripted model, no key
    python evals/refunds.py --model openai:gpt-6-luna --trials 5 --need 0.9

Kill it and run it again: what was asked is not asked, or paid, again. Change `passes` and run it
again: the recorded answers are scored anew. Other instructions, cases or numbers are another eval.
Exit code 1 says that fewer than --need of the trials passed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel

import agentflow
from agentflow import Agent, RunFailedError, start_child, tool, workflow
from agentflow.ledger.reports import RunCost
from agentflow.llm import ModelRequest
from agentflow.providers.scripted import ToolCall, call, script

INSTRUCTIONS = (
    "Decide what happens to an order; look it up first. Refund within 30 days of delivery, replace "
    "what arrived broken after that, escalate what mentions a lawyer or is about anything else."
)
DAYS_SINCE_DELIVERY = {"A1": 3, "A2": 45, "A3": 12, "A4": 90}
AT_ONCE = 8
LATE = 30  # days


@dataclass(frozen=True)
class Case:
    """A message of a customer, and what should become of it."""

    message: str
    action: str


CASES = {
    "fresh": Case("I do not like order A1, please take it back.", "refund"),
    "broken late": Case("Order A2 came broken, I only opened it now.", "replace"),
    "broken fresh": Case("Order A3 came broken.", "refund"),
    "late regret": Case("I do not want A4 any more.", "escalate"),
    "lawyer": Case("Take order A1 back or you hear from my lawyer.", "escalate"),
}


class Decision(BaseModel):
    """What the agent decided."""

    action: Literal["refund", "replace", "escalate"]


@tool(effect="read", cost_usd="0.002")
async def days_since_delivery(order: str) -> int:
    """Look up how many days ago an order was delivered."""
    print(f"-> days_since_delivery({order})", flush=True)
    return DAYS_SINCE_DELIVERY[order]


@script("clerk")
async def clerk(request: ModelRequest) -> str | ToolCall:
    """Decide by the rules, but for the one about lawyers: a model that the eval must catch."""
    await asyncio.sleep(0.2)  # models think
    message, *rest = request.messages
    if not rest:
        return call("days_since_delivery", order=re.findall(r"A\d", message.text)[0])
    late = int(rest[-1].parts[0].content) > LATE
    action = "refund" if not late else "replace" if "broken" in message.text else "escalate"
    return json.dumps({"action": action})


@workflow
async def trial(model: str, message: str) -> str:
    """Ask once, and return what was decided."""
    tools = [days_since_delivery]
    desk = Agent("desk", model=model, instructions=INSTRUCTIONS, tools=tools, output_type=Decision)
    return (await desk.run(message)).output.action


@workflow
async def evaluate(model: str, messages: dict[str, str], trials: int) -> dict[str, list[str]]:
    """Return the answers by case, in the order of the trials; a failed trial is one, too."""
    room = asyncio.Semaphore(AT_ONCE)
    name = agentflow.run_info().id

    async def one(case: str, number: int) -> str:
        async with room:
            child = await start_child(trial, model, messages[case], id=f"{name}.{case}.{number}")
            try:
                return str(await child.result())
            except RunFailedError as error:
                return f"failed: {error}"

    async def each(case: str) -> list[str]:
        return await asyncio.gather(*(one(case, n) for n in range(1, trials + 1)))

    found = await asyncio.gather(*map(each, messages))
    return dict(zip(messages, found, strict=True))


def passes(case: Case, answer: str) -> bool:
    """Score an answer. It runs outside of the runs, so it may change for nothing."""
    return answer == case.action


async def main(model: str, trials: int, need: Decimal) -> int:
    """Run the eval, or what is left of it; print a line for each case; return the exit code."""
    messages = {name: case.message for name, case in CASES.items()}
    asked = json.dumps([INSTRUCTIONS, DAYS_SINCE_DELIVERY, messages, model, trials])
    name = f"refunds-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    passed, costs = 0, []
    async with agentflow.open() as flow:
        answers = await (await flow.start(evaluate, model, messages, trials, id=name)).result()
        print(f"{name}: {model}, {trials} trials of each case")
        for case, wanted in CASES.items():
            runs = [await flow.get(f"{name}.{case}.{n}") for n in range(1, trials + 1)]
            spent = [await run.cost() for run in runs]
            wrong = [answer for answer in answers[case] if not passes(wanted, answer)]
            note = f"  {', '.join(sorted(set(wrong)))}; not {wanted.action}" if wrong else ""
            print(f"{case:<13} {trials - len(wrong)}/{trials}  {total(spent)}{note}")
            passed += trials - len(wrong)
            costs += spent
    number = trials * len(CASES)
    print(f"{'all':<13} {passed}/{number}  {total(costs)}")
    return 0 if passed >= need * number else 1


def total(costs: list[RunCost]) -> str:
    """Return the sum in dollars; one that lacks a price is a lower bound."""
    known = sum((cost.usd or Decimal(0) for cost in costs), Decimal(0))
    return f"{'' if all(cost.is_complete for cost in costs) else '≥ '}${known}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="scripted:clerk", help="provider:name")
    parser.add_argument("--trials", type=int, default=3, help="of each case")
    parser.add_argument("--need", type=Decimal, default=Decimal("0.8"), help="share that passes")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.model, given.trials, given.need)))
