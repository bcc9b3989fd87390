"""LangGraph with its SQLite saver: the same jobs, in its own words, ``durability="sync"``.

The sequential jobs and the conversation are graphs (one node is one step); the resumed run is a
function with tasks, because a graph has nothing to replay. Run by its own interpreter:
``.bench/langgraph/bin/python peers/langgraph_jobs.py JOB --db FILE``.
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from meter import Meter, age_seconds, arguments, cpu_seconds, disk_bytes, median, report, rss_mb
from talk import answer, question, talk_bytes

JOB = sys.argv.pop(1)
ARGS = arguments(n=1000, runs=200, turns=400, mode="resume")
_EDGE = 40


class Count(TypedDict):
    """State of the counting graph."""

    i: int
    n: int
    total: int


class Chat(TypedDict):
    """State of the conversation."""

    messages: Annotated[list[tuple[str, str]], operator.add]


async def double(state: Count) -> dict[str, int]:
    return {"total": state["total"] + 2 * state["i"], "i": state["i"] + 1}


async def speak(state: Chat) -> dict[str, Any]:
    return {"messages": [("assistant", answer(state["messages"][-1][1]))]}


@task
async def double_task(x: int) -> int:
    return 2 * x


@task
async def gate() -> None:
    if ARGS.mode == "record":
        report(ready=True)
        await asyncio.sleep(3600)
    report(start_to_new_ms=age_seconds() * 1e3, cpu_ms=cpu_seconds() * 1e3, rss_mb=rss_mb())
    os._exit(0)


def config(thread: str, n: int = 10) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}, "recursion_limit": n + 10}


def count_graph(saver: Any) -> Any:
    graph = StateGraph(Count)
    graph.add_node("double", double)
    graph.add_edge(START, "double")
    graph.add_conditional_edges("double", lambda s: "double" if s["i"] < s["n"] else END)
    return graph.compile(checkpointer=saver)


async def count(graph: Any, thread: str, n: int) -> None:
    state = {"i": 0, "n": n, "total": 0}
    out = await graph.ainvoke(state, config(thread, n), durability="sync")
    if out["total"] != n * (n - 1):
        raise AssertionError(out)


async def sequential(saver: Any) -> None:
    graph = count_graph(saver)
    await count(graph, "warm", 20)
    meter = Meter()
    await count(graph, "run", ARGS.n)
    report(**meter.read(count=ARGS.n))


async def parallel(saver: Any) -> None:
    graph = count_graph(saver)
    await count(graph, "warm", 20)
    meter = Meter()
    await asyncio.gather(*(count(graph, f"run-{i}", ARGS.n) for i in range(ARGS.runs)))
    numbers = meter.read(count=ARGS.runs * ARGS.n)
    report(**numbers, per_second=1e6 / numbers["wall_us"])


async def conversation(saver: Any) -> None:
    graph = StateGraph(Chat)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    graph.add_edge("speak", END)
    app = graph.compile(checkpointer=saver)
    began, cpu = time.perf_counter(), cpu_seconds()
    steps = []
    for turn in range(ARGS.turns):
        start = time.perf_counter()
        said = {"messages": [("user", question(turn))]}
        await app.ainvoke(said, config("chat"), durability="sync")
        steps.append(time.perf_counter() - start)
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    await saver.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = disk_bytes(ARGS.db)
    report(
        ms_per_turn=wall / ARGS.turns * 1e3, cpu_ms_per_turn=cpu / ARGS.turns * 1e3,
        first_ms=median(steps[2 : 2 + _EDGE]) * 1e3, last_ms=median(steps[-_EDGE:]) * 1e3,
        bytes=size, ratio=size / talk_bytes(ARGS.turns),
    )  # fmt: skip


async def resume(saver: Any) -> None:
    @entrypoint(checkpointer=saver)
    async def long(n: int) -> int:
        for i in range(n):
            await double_task(i)
        await gate()
        return n

    given = ARGS.n if ARGS.mode == "record" else None
    await long.ainvoke(given, config("the-run"), durability="sync")


async def cold_start(saver: Any) -> None:
    await count(count_graph(saver), "run", 1)
    numbers = {"start_to_recorded_ms": age_seconds() * 1e3, "rss_mb": rss_mb()}
    report(**numbers, cpu_ms=cpu_seconds() * 1e3)


async def main() -> None:
    jobs = {
        "sequential": sequential, "parallel": parallel, "conversation": conversation,
        "resume": resume, "cold_start": cold_start,
    }  # fmt: skip
    async with AsyncSqliteSaver.from_conn_string(str(ARGS.db)) as saver:
        await jobs[JOB](saver)


if __name__ == "__main__":
    asyncio.run(main())
