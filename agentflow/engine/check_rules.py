"""The names that workflow code must not call, for `agentflow.engine.check`."""

from __future__ import annotations

from typing import Final, Literal

from agentflow.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """What a call of certain names means in workflow code."""

    code: str
    names: str
    """Dotted names, separated by blanks; one that ends with a dot is a prefix."""
    what: str
    hint: str
    severity: Literal["error", "warning"] = "error"


_EFFECT: Final = "Move it into a function under @tool or @activity, and await that."

# The first rule that matches decides; `HARMLESS` goes before all of them.
RULES: Final = (
    Rule(
        "AFC101",
        "datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today"
        " datetime.date.today",
        "reads the clock",
        "Use agentflow.now().",
    ),
    Rule("AFC102", "time.sleep", "blocks", "Use `await asyncio.sleep(…)`, a durable timer."),
    Rule("AFC101", "time.", "reads the clock", "Use agentflow.now()."),
    Rule("AFC103", "random.", "draws random numbers", "Use agentflow.random()."),
    Rule(
        "AFC104",
        "uuid.uuid1 uuid.uuid4 uuid.uuid6 uuid.uuid7 uuid.getnode",
        "makes another id on every replay",
        "Use agentflow.uuid4().",
    ),
    Rule(
        "AFC103",
        "secrets. os.urandom os.getrandom",
        "draws random numbers",
        "Use agentflow.random(), or make the secret in an @activity.",
    ),
    Rule("AFC105", "builtins.open io.open os.open pathlib.Path.open", "opens a file", _EFFECT),
    Rule(
        "AFC106",
        "requests. httpx. httpx2. aiohttp. urllib.request. urllib3. http.client. socket. smtplib."
        " ftplib. websockets. boto3. sqlite3. psycopg. psycopg2. openai. anthropic."
        " asyncio.open_connection asyncio.open_unix_connection asyncio.start_server",
        "reaches the network or a database",
        _EFFECT,
    ),
    Rule(
        "AFC107",
        "subprocess. multiprocessing. os.system os.popen os.fork os.spawnl os.spawnv os.execv"
        " os.posix_spawn asyncio.create_subprocess_exec asyncio.create_subprocess_shell",
        "starts a process",
        _EFFECT,
    ),
    Rule(
        "AFC108",
        "threading. concurrent.futures. asyncio.to_thread asyncio.run_coroutine_threadsafe",
        "uses threads",
        _EFFECT,
    ),
    Rule(
        "AFC109",
        "asyncio.run asyncio.Runner asyncio.new_event_loop agentflow.run_sync",
        "starts another event loop",
        "Await the coroutine.",
    ),
    Rule(
        "AFC110",
        "builtins.input",
        "waits for a person at this terminal",
        "Use agentflow.approve(…) or agentflow.wait_signal(…).",
    ),
    Rule(
        "AFC201",
        "builtins.print",
        "prints again on every replay",
        "Use agentflow.logger, which is silent in replay.",
        "warning",
    ),
    Rule(
        "AFC202",
        "builtins.hash builtins.id",
        "differs between processes",
        "Use a value that is part of the data.",
        "warning",
    ),
    Rule(
        "AFC203",
        "os.getenv os.environ.get os.getpid os.getcwd os.listdir os.scandir os.cpu_count",
        "reads this machine",
        "Pass it in as the workflow's input, or read it in an @activity.",
        "warning",
    ),
)

HARMLESS: Final = frozenset(
    {"time.strptime", "time.mktime", "time.struct_time", "random.Random.seed", "socket.htons"}
)
# These read the clock, or the system's randomness, only if they are not told what to use.
HARMLESS_WITH_ARGUMENTS: Final = {
    "time.gmtime": 1,
    "time.asctime": 1,
    "time.strftime": 2,
    "random.Random": 1,
}

METHODS: Final = {
    "run_in_executor": ("AFC108", "uses threads", _EFFECT),
    "call_soon_threadsafe": ("AFC108", "uses threads", _EFFECT),
    "run_until_complete": ("AFC109", "starts another event loop", "Await the coroutine."),
    "read_text": ("AFC105", "opens a file", _EFFECT),
    "read_bytes": ("AFC105", "opens a file", _EFFECT),
    "write_text": ("AFC105", "opens a file", _EFFECT),
    "write_bytes": ("AFC105", "opens a file", _EFFECT),
}
