"""`make bench`: each workload in a process of its own, interleaved; medians, README and chart.

    N=5            rounds (BENCH_QUICK=1: 1 round and small sizes, to see that it works)
    ONLY=b,e       only these workloads
    PARKED=100000  how many runs wait on PostgreSQL (10,000 unless told)
    PEERS=0        without DBOS and LangGraph (their environments are made under .bench/)

Each round runs every contestant once, so that a machine that is slow for a minute is slow for all.
Peers are installed by pip, which compiles their modules; so ours are compiled before, too.
"""

from __future__ import annotations

import compileall
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import chart
import table
from meter import median

from agentflow.errors import StoreError
from agentflow.testing.postgres import PostgresServer, private_server

HERE = Path(__file__).parent
ROOT = HERE.parent
BENCH = ROOT / ".bench"
DATA = BENCH / "data"
RESULTS = HERE / "results.json"
PEERS = {
    "dbos": ["dbos==3.4.0"],
    "langgraph": ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2"],
}
QUICK = os.environ.get("BENCH_QUICK", "0") not in {"", "0"}
ROUNDS = int(os.environ.get("N", "1" if QUICK else "5"))
SMALL = 10 if QUICK else 1
PARKED = int(os.environ.get("PARKED", "10000"))
TIMEOUT_SECONDS = 600
IMPORTS = {
    "import_floor": "import asyncio, pydantic; pydantic.BaseModel, pydantic.TypeAdapter",
    "import_agentflow": "import agentflow",
    "import_used": "from agentflow import Agent, activity, open, tool, workflow",
}


class ContestantError(Exception):
    """A contestant gave up; its numbers are missing, the others go on."""


@dataclass(frozen=True)
class Case:
    """One contestant in one workload.

    Attributes:
        name: ``workload/contestant``.
        command: Script and options; ``{db}`` is its database.
        before: Command that prepares the database, in a process that is then killed.
        python: Its interpreter.
        keep: Use the database that this other case has left behind.
        rounds: Fewer rounds for what takes long.
    """

    name: str
    command: list[str]
    before: list[str] = field(default_factory=list)
    python: str = sys.executable
    keep: str = ""
    rounds: int = ROUNDS


def cases() -> list[Case]:
    n, runs, parked = 1000 // SMALL, 200 // SMALL, 10_000 // SMALL
    found = [
        Case("a/floor", ["floor.py", f"--n={n}"]),
        Case("a/floor-process", ["floor.py", f"--n={n}", "--durability=process"]),
        Case("b/agentflow", ["sequential.py", f"--n={n}"]),
        Case("b/agentflow-process", ["sequential.py", f"--n={n}", "--durability=process"]),
        Case("c/agentflow", ["parallel.py", f"--runs={runs}"]),
        Case("c/agentflow-process", ["parallel.py", f"--runs={runs}", "--durability=process"]),
        Case("f/agentflow", ["cold_start.py"]),
        Case("g/agentflow", ["parked.py", f"--n={parked}"]),
        Case("g/agentflow-wake", ["parked.py", f"--n={parked}", "--mode=wake"], keep="g/agentflow"),
        Case("j/agentflow", ["batch.py", f"--n={parked}"], rounds=1),
    ]
    for turns in (50, 100, 200, 400):
        t = turns // SMALL
        found.append(Case(f"d/agentflow-{turns}", ["conversation.py", f"--turns={t}"]))
    found.append(Case("d/agentflow-window", ["conversation.py", f"--turns={t}", "--window=40"]))
    for count in (1000, 5000):
        c = max(1, count // SMALL)
        before = ["resume.py", f"--n={c}", "--mode=record"]
        found.append(Case(f"e/agentflow-{count}", ["resume.py", f"--n={c}"], before))
    found += [Case(f"f/{name}", ["-c", code]) for name, code in IMPORTS.items()]
    sizes = {"floor": n, "sequential": n, "parallel": n, "lone": n, "fleet": n}
    sizes["latency"] = n // 4
    for job, size in {**sizes, "parked": PARKED // SMALL}.items():
        command = ["postgres.py", f"--job={job}", f"--n={size}", f"--runs={runs}"]
        found.append(Case(f"p/{job}", command, rounds=1 if job == "parked" else ROUNDS))
    if os.environ.get("PEERS", "1") != "0":
        for peer in PEERS:
            found += peer_cases(peer, n, runs)
    only = os.environ.get("ONLY", "")
    return [c for c in found if not only or c.name[0] in only.split(",") or c.name[0] == "a"]


def peer_cases(peer: str, n: int, runs: int) -> list[Case]:
    python, script = str(BENCH / peer / "bin" / "python"), f"peers/{peer}_jobs.py"

    def case(name: str, job: str, *options: str, before: tuple[str, ...] = ()) -> Case:
        prepare = [script, *before] if before else []
        return Case(name, [script, job, *options], prepare, python)

    found = [
        case(f"b/{peer}", "sequential", f"--n={n}"),
        case(f"c/{peer}", "parallel", f"--runs={runs}", "--n=10"),
        case(f"f/{peer}", "cold_start"),
    ]
    if peer == "dbos":
        found.append(case("p/dbos-sequential", "sequential", f"--n={n}"))
        found.append(case("p/dbos-parallel", "parallel", f"--runs={runs}", "--n=10"))
    found += [
        case(f"d/{peer}-{turns}", "conversation", f"--turns={turns // SMALL}")
        for turns in (50, 100, 200, 400)
    ]
    for count in (1000, 5000):
        size = f"--n={max(1, count // SMALL)}"
        before = ("resume", size, "--mode=record")
        found.append(case(f"e/{peer}-{count}", "resume", size, before=before))
    return found


def main() -> None:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    (BENCH / ".gitignore").write_text("*\n")
    chosen = cases()
    with ExitStack() as stack:
        server = postgres(stack) if any(c.name[0] == "p" for c in chosen) else None
        measure([c for c in chosen if server is not None or c.name[0] != "p"], server)


def postgres(stack: ExitStack) -> PostgresServer | None:
    """Start a private server, or say why there is none."""
    try:
        return stack.enter_context(private_server())
    except StoreError as e:
        print(f"nothing on PostgreSQL: {e.message}", flush=True)
        return None


def measure(chosen: list[Case], server: PostgresServer | None) -> None:
    make_environments({c.python for c in chosen})
    compileall.compile_dir(ROOT / "agentflow", quiet=1)
    began, load = time.time(), os.getloadavg()[0]
    measured: dict[str, list[dict[str, float]]] = {case.name: [] for case in chosen}
    for round_ in range(ROUNDS):
        for case in chosen:
            if round_ < case.rounds:
                try:
                    numbers = run(case, server)
                except (ContestantError, subprocess.TimeoutExpired) as e:
                    print(f"{round_ + 1}/{ROUNDS} {case.name:24} failed: {e}", flush=True)
                    continue
                measured[case.name].append(numbers)
                print(f"{round_ + 1}/{ROUNDS} {case.name:24} {shown(numbers)}", flush=True)
    results = {
        "facts": facts(load, time.time() - began),
        "medians": {name: medians(rows) for name, rows in measured.items() if rows},
        "fsyncs": {case.name: count_fsyncs(case) for case in chosen if measured[case.name]},
        "rounds": measured,
    }
    shutil.rmtree(DATA)
    if QUICK or os.environ.get("ONLY"):
        print(table.text(results))  # a part of the picture is not written over the whole one
        return
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    (HERE / "README.md").write_text(table.readme(results))
    (HERE / "chart.svg").write_text(chart.svg(results))
    print(f"written: {RESULTS}, README.md, chart.svg")


def run(case: Case, server: PostgresServer | None) -> dict[str, float]:
    """Run one contestant once and return what it reports."""
    if case.name[0] == "p" and server is not None:
        url = server.new_database()
        try:
            command = [case.python, *case.command, "--db=none"]
            return dict(json.loads(start(command, BENCH_POSTGRES_URL=url)[-1]))
        finally:
            server.drop(url)
    file = DATA / f"{(case.keep or case.name).replace('/', '-')}.db"
    if not case.keep:
        clear(file.name)
    if case.before:
        shutil.copytree(recorded(case), DATA, dirs_exist_ok=True)
    if case.command[0] == "-c":
        return import_time(case)
    lines = start([case.python, *case.command, f"--db={file}"])
    return dict(json.loads(lines[-1]))


def start(command: list[str], **changes: str) -> list[str]:
    env = {**os.environ, **changes, "BENCH_STARTED_AT": repr(time.time()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=HERE, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise ContestantError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()


def import_time(case: Case) -> dict[str, float]:
    # The interpreter's own start is in both; its cost is measured and taken off.
    code = "import time, resource; a = time.perf_counter(); {}; print(time.perf_counter() - a)"
    seconds = [float(start([case.python, "-c", code.format(case.command[1])])[-1]) for _ in "123"]
    return {"import_ms": min(seconds) * 1e3}


def recorded(case: Case) -> Path:
    """Return a folder with the database of a process that was killed, recorded once."""
    folder = DATA / f"{case.name.replace('/', '-')}.killed"
    file = folder / f"{case.name.replace('/', '-')}.db"
    if folder.exists():
        return folder
    folder.mkdir()
    env = {**os.environ, "BENCH_STARTED_AT": "0", "PYTHONPATH": str(ROOT)}
    command = [case.python, *case.before, f"--db={file}"]
    with subprocess.Popen(command, cwd=HERE, env=env, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or "ready" not in process.stdout.readline():
            raise ContestantError(f"{' '.join(command)} did not get ready")
        process.kill()
    return folder


def clear(name: str) -> None:
    """Remove the database *name* and what belongs to it."""
    for path in DATA.glob(f"{name}*"):
        path.unlink()


def count_fsyncs(case: Case) -> float | None:
    """Return fsyncs per item, by strace; None without it. Not part of the timed runs."""
    strace = shutil.which("strace")
    if case.name[0] not in "ab":
        return None
    size = next((int(o[4:]) for o in case.command if o.startswith("--n=")), 0)
    if strace is None or not size:
        return None
    counts = []
    for n in (size // 2, size):
        clear("fsync.db")
        command = [o if not o.startswith("--n=") else f"--n={n}" for o in case.command]
        trace = DATA / "fsync.txt"
        calls = [strace, "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", str(trace)]
        start([*calls, case.python, *command, f"--db={DATA / 'fsync.db'}"])
        rows = re.findall(
            r"^\s*\S+\s+\S+\s+\S+\s+(\d+)\s.*f(?:data)?sync$", trace.read_text(), re.MULTILINE
        )
        counts.append(sum(map(int, rows)))
    return (counts[1] - counts[0]) / (size - size // 2)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: median([row[name] for row in rows]) for name in rows[0]}


def shown(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name}={value:,.1f}" for name, value in numbers.items())


def make_environments(used: set[str]) -> None:
    """Make an environment for each peer: their dependencies are none of ours."""
    for peer, wanted in PEERS.items():
        python = BENCH / peer / "bin" / "python"
        if str(python) not in used or (BENCH / peer / ".done").exists():
            continue
        print(f"installing {' '.join(wanted)} in .bench/{peer}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(BENCH / peer)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        (BENCH / peer / ".done").touch()


def facts(load: float, seconds: float) -> dict[str, Any]:
    """Return versions and settings: a number without them is worth nothing."""
    model = re.search(r"model name\s*: (.*)", cpu_info())
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": version("sqlalchemy"),
        "pydantic": version("pydantic"),
        "peers": [one for wanted in PEERS.values() for one in wanted],
        "machine": f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "rounds": ROUNDS,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "seconds": round(seconds),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
    }


def cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def commit() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
