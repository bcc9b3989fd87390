"""The results as text: the table of README.md, with the target beside each number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = tuple[str, str, str, str, str]
HEADER: Row = ("work", "target", "agentflow", "DBOS", "LangGraph")


def rows(results: dict[str, Any]) -> list[Row]:
    """Return one row per target; what was not measured is a dash."""
    m, fsyncs = results["medians"], results["fsyncs"]

    def get(case: str, name: str) -> float | None:
        value = m.get(case, {}).get(name)
        return None if value is None else float(value)

    def peers(workload: str, name: str, form: str, suffix: str = "") -> tuple[str, str]:
        return (
            shown(get(f"{workload}/dbos{suffix}", name), form),
            shown(get(f"{workload}/langgraph{suffix}", name), form),
        )

    floor = get("a/floor", "wall_us")
    limit = None if floor is None else 1.3 * floor + 350
    found: list[Row] = [
        (
            "raw sqlite3, one-row commit, FULL (the floor)", "", shown(floor, "{:,.0f} µs"), "", "",
        ),
        (
            "1,000 sequential activities, one run, FULL: each",
            "≤ 1.3 x floor + 350 µs" + (f" = {limit:,.0f} µs" if limit else ""),
            shown(get("b/agentflow", "wall_us"), "{:,.0f} µs"),
            *peers("b", "wall_us", "{:,.0f} µs"),
        ),
        (
            "· CPU of all threads, each", "", shown(get("b/agentflow", "cpu_us"), "{:,.0f} µs"),
            *peers("b", "cpu_us", "{:,.0f} µs"),
        ),
        (
            "· fsyncs, each", "1", shown(fsyncs.get("b/agentflow"), "{:.2f}"),
            shown(fsyncs.get("b/dbos"), "{:.2f}"), shown(fsyncs.get("b/langgraph"), "{:.2f}"),
        ),
        (
            '· with durability="process"', "",
            shown(get("b/agentflow-process", "wall_us"), "{:,.0f} µs"), "", "",
        ),
        (
            "200 runs x 10 activities at once, FULL", "≥ 5,000 /s, aim 8,000",
            shown(get("c/agentflow", "per_second"), "{:,.0f} /s"),
            *peers("c", "per_second", "{:,.0f} /s"),
        ),
        (
            "· CPU of all threads, each", "", shown(get("c/agentflow", "cpu_us"), "{:,.0f} µs"),
            *peers("c", "cpu_us", "{:,.0f} µs"),
        ),
        (
            '· with durability="process"', "",
            shown(get("c/agentflow-process", "per_second"), "{:,.0f} /s"), "", "",
        ),
    ]  # fmt: skip
    for turns, target in ((50, "linear"), (100, "linear"), (200, "linear"), (400, "≤ 2.0 x")):
        name = f"conversation, {turns} turns x 2 KB: bytes on disk / bytes said"
        mine = shown(get(f"d/agentflow-{turns}", "ratio"), "{:.2f} x")
        found += [(name, target, mine, *peers("d", "ratio", "{:.1f} x", f"-{turns}"))]
    first, last = get("d/agentflow-400", "first_ms"), get("d/agentflow-400", "last_ms")
    found += [
        (
            "· sliding window of 40 messages, 400 turns", "≤ 2.0 x",
            shown(get("d/agentflow-window", "ratio"), "{:.2f} x"), "", "",
        ),
        (
            "· ms per turn, first 40 turns → last 40", "flat",
            "-" if first is None or last is None else f"{first:.1f} → {last:.1f} ms",
            *(edges(get, f"d/{peer}-400") for peer in ("dbos", "langgraph")),
        ),
    ]  # fmt: skip
    for count, target in ((1000, "≤ 0.6 s"), (5000, "≤ 1.0 s")):
        found.append((
            f"kill -9 after {count:,} activities: process start → first new one", target,
            shown(get(f"e/agentflow-{count}", "start_to_new_ms"), "{:,.0f} ms"),
            *peers("e", "start_to_new_ms", "{:,.0f} ms", f"-{count}"),
        ))  # fmt: skip
    found += [
        (
            "· each replayed activity (slope from 1,000 to 5,000)", "≤ 60 µs",
            *(slope(get, who) for who in ("agentflow", "dbos", "langgraph")),
        ),
        (
            "fresh process → first activity recorded", "≤ 500 ms",
            shown(get("f/agentflow", "start_to_recorded_ms"), "{:,.0f} ms"),
            *peers("f", "start_to_recorded_ms", "{:,.0f} ms"),
        ),
        (
            "· memory then", "≤ 60 MB", shown(get("f/agentflow", "rss_mb"), "{:.0f} MB"),
            *peers("f", "rss_mb", "{:.0f} MB"),
        ),
        (
            "· `import agentflow` / asyncio + pydantic", "≤ 1.4 x",
            ratio(get("f/import_agentflow", "import_ms"), get("f/import_floor", "import_ms")),
            "", "",
        ),
        (
            "· the same, with the names that a script uses", "",
            ratio(get("f/import_used", "import_ms"), get("f/import_floor", "import_ms")), "", "",
        ),
        (
            "10,000 runs parked on a signal and a timer: started in", "≤ 6 s",
            shown(get("g/agentflow", "park_s"), "{:.1f} s"), "", "",
        ),
        ("· more memory", "≤ 30 MB", shown(get("g/agentflow", "more_rss_mb"), "{:.0f} MB"), "", ""),
        (
            "· bytes on disk, each", "≤ 2,048",
            shown(get("g/agentflow", "bytes_per_run"), "{:,.0f}"), "", "",
        ),
        (
            "· restarted: process start → the first woken one has acted", "≤ 500 ms",
            shown(get("g/agentflow-wake", "start_to_woken_ms"), "{:,.0f} ms"), "", "",
        ),
        (
            "10,000 runs whose model call waits in one batch: sent and woken, more memory",
            "≤ 100 MB", shown(get("j/agentflow", "more_rss_mb"), "{:.0f} MB"), "", "",
        ),
    ]  # fmt: skip
    return found + on_postgres(get)


def on_postgres(get: Callable[[str, str], float | None]) -> list[Row]:
    """Return the rows of (p); what was not measured is a dash."""
    floor = get("p/floor", "wall_us")
    limit = "" if floor is None else f" = {1.3 * floor + 300:,.0f} µs"
    lines = [
        ("PostgreSQL, one-row commit (its floor)", "", "floor", "wall_us", "{:,.0f} µs"),
        (
            "· 1,000 sequential activities: each", f"≤ 1.3 x floor + 300 µs{limit}",
            "sequential", "wall_us", "{:,.0f} µs",
        ),
        (
            "· 200 runs x 10 activities at once, one worker", "≥ 3,000 /s, aim 4,000",
            "parallel", "per_second", "{:,.0f} /s",
        ),
        (
            "· the same, due at one moment, one `agentflow worker`", "", "lone",
            "per_second", "{:,.0f} /s",
        ),
        ("· 4 of them", "more", "fleet", "per_second", "{:,.0f} /s"),
        ("· commits of the server then", "", "fleet", "commits_per_second", "{:,.0f} /s"),
        ("· start → first activity, idle worker: p50", "≤ 20 ms", "latency", "p50_ms", "{:.1f} ms"),
        ("· p99", "≤ 100 ms", "latency", "p99_ms", "{:.1f} ms"),
        ("· parked runs: database, each", "≤ 3,072", "parked", "bytes_per_run", "{:,.0f}"),
        ("· more memory of the worker", "flat", "parked", "more_rss_mb", "{:.0f} MB"),
        ("· 1,000 of them woken at once: all have acted", "≤ 2 s", "parked", "woken_s", "{:.1f} s"),
        ("· all have ended", "", "parked", "ended_s", "{:.1f} s"),
    ]  # fmt: skip
    return [
        (
            what, target, shown(get(f"p/{job}", name), form),
            shown(get(f"p/dbos-{job}", name), form), "",
        )
        for what, target, job, name, form in lines
    ]  # fmt: skip


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def ratio(value: float | None, floor: float | None) -> str:
    return "-" if value is None or not floor else f"{value / floor:.2f} x"


def edges(get: Any, case: str) -> str:
    first, last = get(case, "first_ms"), get(case, "last_ms")
    return "-" if first is None or last is None else f"{first:.1f} → {last:.1f} ms"


def slope(get: Any, who: str) -> str:
    few, many = (get(f"e/{who}-{n}", "start_to_new_ms") for n in (1000, 5000))
    return "-" if few is None or many is None else f"{(many - few) / 4000 * 1e3:,.0f} µs"


def text(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *rows(results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def readme(results: dict[str, Any]) -> str:
    """Return README.md of this folder."""
    f = results["facts"]
    note = ""
    if f["load_before"] > 1:
        note = f"""
**The machine was busy with other work** (load average {f["load_before"]}): compare the columns of
a row, and CPU time; the wall times say nothing about the targets.
"""
    if f.get("note"):
        note += f"\n{f['note']}\n"
    return f"""# Benchmarks

<!-- Written by `make bench` (benchmarks/run.py); edit table.py, not this file. -->

![What agentflow costs, beside the floor and the peers](chart.svg)

{text(results)}
{note}
Medians of {f["rounds"]} interleaved rounds: each round runs every contestant once, each in a
process of its own, so that a machine that is slow for a minute is slow for all.

{f["date"]}, commit `{f["commit"]}`; {f["machine"]}; {f["system"]}; load average
{f["load_before"]} before and {f["load_after"]} after (of other work and this); Python
{f["python"]}, SQLite {f["sqlite"]}, SQLAlchemy {f["sqlalchemy"]}, pydantic {f["pydantic"]};
{", ".join(f["peers"])}, each in an environment of its own.

## Settings

- **PostgreSQL**: a private server, `fsync` and `synchronous_commit` on, a new database for each
  process. Four workers and the server share the machine's cores.
- **agentflow**: SQLite, WAL, `synchronous=FULL`, the default. With `durability="process"` it is
  `NORMAL`: a commit survives `kill -9`, and a power cut may lose the last ones.
- **The floor** is `sqlite3` with the same journal and FULL: `BEGIN IMMEDIATE`, one row of 200
  bytes, `COMMIT`. The group commit has 2,000 rows.
- **DBOS** on SQLite with its defaults. **LangGraph** with `AsyncSqliteSaver`, `durability="sync"`,
  so that a step is on disk before the next begins: a graph of one node for the steps and the
  conversation, a function with tasks for the resumed run (a graph has nothing to replay).
- **Conversation**: a question and an answer of 1,024 bytes of English prose a turn; the file and
  its log divided by those bytes, the empty schema included. agentflow keeps the full request of
  each call (rebuilt and checked at the end), the raw response and the ledger; DBOS keeps the
  answers; LangGraph keeps the state at each step.
- **Fsyncs** are counted by `strace`, in runs of their own. **CPU** is user and system time of all
  threads.
- **Resume**: the database of a process that was killed with SIGKILL in its last activity, copied
  for each round. The first new activity is that one, repeated.
- **Import**: the interpreter's own start is taken off; the best of three.

`make bench` makes all of it anew. `BENCH_QUICK=1 make bench` shows in a minute that it works,
`ONLY=b,c N=9 make bench` measures a part; neither writes files. Every number of every round is in
[results.json](results.json).
"""
