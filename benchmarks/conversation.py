"""(d) A conversation with an agent: T turns of 2 KB, the full request of every call recoverable."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

from meter import arguments, cpu_seconds, disk_bytes, median, report
from talk import answer, question, talk_bytes

import agentflow
from agentflow.activities.llm_call import llm_call
from agentflow.agents import keep_last
from agentflow.history.events import ActivityScheduled
from agentflow.llm import ModelRequest, ModelResponse, Usage, assistant
from agentflow.protocols import ProviderCall

ARGS = arguments(turns=400, window=0)
_EDGE = 40  # turns at either end that are compared
_times: list[float] = []


class Vendor:
    """A model that costs no time, with a response as long as those of real vendors."""

    name = "bench"

    async def complete(self, request: ModelRequest, _call: ProviderCall) -> ModelResponse:
        """Answer at once."""
        _times.append(time.perf_counter())
        number = len(_times)
        raw = {
            "id": f"resp_{number:048x}", "object": "response", "created_at": 1_790_000_000 + number,
            "status": "completed", "model": "bench-1", "parallel_tool_calls": True,
            "service_tier": "default", "store": True, "tool_choice": "auto",
            "truncation": "disabled",
            "usage": {"input_tokens": 500 * number, "output_tokens": 250},
        }  # fmt: skip
        return ModelResponse(
            message=assistant(answer(request.messages[-1].text)),
            finish="stop",
            model="bench:bench-1",
            usage=Usage(input_tokens=500 * number, output_tokens=250),
            response_id=raw["id"],
            request_id=f"req_{number:032x}",
            service_tier="default",
            raw=raw,
        )

    async def close(self) -> None:
        """Hold nothing, close nothing."""


agent = agentflow.Agent(
    "talker",
    model="bench:talker",
    instructions="Answer at length.",
    compact=keep_last(ARGS.window) if ARGS.window else None,
)


@agentflow.workflow
async def chat(turns: int) -> int:
    conversation = None
    for turn in range(turns):
        result = await agent.run(question(turn), conversation=conversation)
        conversation = result.messages
    return turns


async def main() -> None:
    async with agentflow.open(f"sqlite:///{ARGS.db}", providers=[Vendor()]) as flow:
        began, cpu = time.perf_counter(), cpu_seconds()
        run = await flow.start(chat, ARGS.turns)
        await run.result()
        wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        await check(flow, run)
    steps = [b - a for a, b in pairwise(_times)]
    size = disk_bytes(ARGS.db)
    report(
        ms_per_turn=wall / ARGS.turns * 1e3,
        cpu_ms_per_turn=cpu / ARGS.turns * 1e3,
        first_ms=median(steps[2 : 2 + _EDGE]) * 1e3,
        last_ms=median(steps[-_EDGE:]) * 1e3,
        bytes=size,
        ratio=size / talk_bytes(ARGS.turns),
    )


async def check(flow: agentflow.Flow, run: agentflow.Run[int]) -> None:
    """The request of the last call, rebuilt from the history, must be whole."""
    asked = [e for e in await run.history() if isinstance(e, ActivityScheduled)]
    payload = asked[-1].payload
    if payload is None or len(asked) != ARGS.turns:
        raise AssertionError(len(asked))

    def read() -> int:
        values = flow.codec.decode_fields(
            payload, llm_call.annotations, flow.store, what="the request"
        )
        return len(values["request"].messages)

    count = await asyncio.to_thread(read)
    whole = 2 * ARGS.turns - 1
    if count not in ((whole,) if not ARGS.window else (ARGS.window, ARGS.window + 1, whole)):
        raise AssertionError(count)


if __name__ == "__main__":
    asyncio.run(main())
