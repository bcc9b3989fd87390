"""`agentflow check`: what reading the file finds."""

from __future__ import annotations

import textwrap

import pytest

from agentflow.engine.check import Finding, check_source

HEAD = """\
import asyncio, os, random, time, uuid, secrets, subprocess, threading, contextlib
import datetime as dt
from datetime import datetime as clock, date
from random import choice
from pathlib import Path
import agentflow
from agentflow import workflow, activity, tool, now
import httpx
CACHE = {}
"""


def codes(body: str, *, decorator: str = "@workflow") -> list[str]:
    """Return the codes found in a workflow with *body*."""
    function = (
        f"{decorator}\nasync def run(x, names):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    )
    return [finding.code for finding in check_source(HEAD + function, "flow.py")]


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("clock.now()", "AFC101"),
        ("dt.datetime.utcnow()", "AFC101"),
        ("date.today()", "AFC101"),
        ("time.time()", "AFC101"),
        ("time.strftime('%Y')", "AFC101"),
        ("time.sleep(1)", "AFC102"),
        ("random.random()", "AFC103"),
        ("choice(names)", "AFC103"),
        ("random.Random()", "AFC103"),
        ("secrets.token_hex()", "AFC103"),
        ("os.urandom(4)", "AFC103"),
        ("uuid.uuid4()", "AFC104"),
        ("open('file')", "AFC105"),
        ("Path('file').read_text()", "AFC105"),
        ("httpx.get('http://x')", "AFC106"),
        ("await asyncio.open_connection('x', 1)", "AFC106"),
        ("subprocess.run(['x'])", "AFC107"),
        ("os.system('x')", "AFC107"),
        ("await asyncio.create_subprocess_exec('x')", "AFC107"),
        ("threading.Thread()", "AFC108"),
        ("await asyncio.to_thread(print)", "AFC108"),
        ("asyncio.get_running_loop().run_in_executor(None, f)", "AFC108"),
        ("asyncio.run(f())", "AFC109"),
        ("input()", "AFC110"),
        ("for n in set(names): pass", "AFC111"),
        ("for n in {'a', 'b'}: pass", "AFC111"),
        ("[n for n in set(names) - {1}]", "AFC111"),
        ("list({n for n in names})", "AFC111"),
        ("','.join(set(names))", "AFC111"),
        ("await asyncio.gather(*{f(n) for n in names})", "AFC111"),
        ("try: f()\nexcept: pass", "AFC112"),
        ("try: f()\nexcept (ValueError, BaseException): log()", "AFC112"),
        ("with contextlib.suppress(BaseException): f()", "AFC112"),
        ("global CACHE\nCACHE = 1", "AFC113"),
        ("CACHE[x] = 1", "AFC113"),
        ("CACHE.update(x=1)", "AFC113"),
        ("print(x)", "AFC201"),
        ("hash(x)", "AFC202"),
        ("os.environ['HOME']", "AFC203"),
        ("os.getenv('HOME')", "AFC203"),
    ],
)
def test_what_does_not_replay_is_found(statement: str, code: str) -> None:
    """Through aliases, at every place where an expression may stand."""
    assert codes(statement) == [code]


@pytest.mark.parametrize(
    "statement",
    [
        "now()",
        "agentflow.random().choice(names)",
        "random = agentflow.random()\nrandom.choice(names)",
        "time.strptime('2026', '%Y')",
        "time.strftime('%Y', x)",
        "time.gmtime(0)",
        "random.Random(7)",
        "uuid.UUID(x)\nuuid.uuid5(x, 'a')",
        "dt.datetime.fromtimestamp(0)",
        "await asyncio.sleep(1)",
        "for n in sorted(set(names)): pass",
        "for n in {1, 2}: pass",
        "len({n for n in names})",
        "done, rest = await asyncio.wait(names)\nfor t in done: t.result()",
        "try: f()\nexcept Exception: pass",
        "try: f()\nexcept BaseException:\n    log()\n    raise",
        "CACHE = {}\nCACHE[x] = 1",
        "n = 0\ndef bump():\n    nonlocal n\n    n += 1",
        "open = x\nopen('file')",
        "isinstance(x, httpx.Response)",
    ],
)
def test_what_replays_is_let_through(statement: str) -> None:
    """False alarms would teach people to look away."""
    assert codes(statement) == []


@pytest.mark.parametrize(
    ("decorator", "found"),
    [
        ("@workflow", 1),
        ("@workflow()", 1),
        ("@workflow(name='x')", 1),
        ("@agentflow.workflow", 1),
        ("@agentflow.workflow(fail_on=(ValueError,))", 1),
        ("@activity", 0),
        ("@tool(effect='read')", 0),
        ("@prefect.workflow", 0),
        ("", 0),
    ],
)
def test_only_workflows_are_looked_at(decorator: str, found: int) -> None:
    """Bare, called, or through the package."""
    assert len(codes("time.time()", decorator=decorator)) == found


def test_helpers_are_followed_and_activities_are_not() -> None:
    """Down to the last one, and each finding says which workflow it belongs to."""
    source = HEAD + textwrap.dedent(
        """
        def deep(): return time.time()
        async def helper(x): return deep()
        @activity
        async def fetch(): return time.time()
        @tool(effect="read")
        def look(): return time.time()
        def elsewhere(): return time.time()
        @workflow
        async def run(xs):
            @activity
            def inner(): return time.time()
            return await asyncio.gather(*map(helper, xs), fetch(), look(), inner())
        """
    )

    findings = check_source(source, "flow.py")

    assert [(f.line, f.code) for f in findings] == [(11, "AFC101")]
    assert findings[0].message == "time.time() reads the clock (run calls it)."


def test_a_finding_says_where_what_and_what_instead() -> None:
    """Whole, as programs and people read it."""
    source = (
        "import time\nfrom agentflow import workflow\n@workflow\nasync def f():\n  time.sleep(1)\n"
    )

    (finding,) = check_source(source, "flow.py")

    assert finding == Finding(
        path="flow.py",
        line=5,
        column=3,
        code="AFC102",
        message="time.sleep() blocks.",
        hint="Use `await asyncio.sleep(…)`, a durable timer.",
        severity="error",
    )
    assert str(finding).startswith("flow.py:5:3: AFC102 time.sleep() blocks. Use ")


def test_printing_is_only_a_warning() -> None:
    """It is untidy, but replays."""
    (finding,) = check_source(HEAD + "@workflow\nasync def f(): print(1)\n", "flow.py")

    assert finding.severity == "warning"


@pytest.mark.parametrize(
    "statement",
    [
        "time.time()  # agentflow: allow",
        "time.time()  # agentflow: allow: the value is thrown away",
        "time.strftime(\n    '%Y',  # agentflow: allow\n)",
        "for n in set(names):  # agentflow: allow\n    pass",
    ],
)
def test_a_comment_silences_its_line(statement: str) -> None:
    """Any line of the call, or the first of a block."""
    assert codes(statement) == []


def test_a_comment_on_another_line_silences_nothing() -> None:
    """Nor do the words in a string."""
    assert codes("x = 'agentflow: allow'; time.time()\n# agentflow: allow") == ["AFC101"]


def test_a_file_that_does_not_parse_is_a_finding() -> None:
    """`agentflow check` goes on with the next file."""
    (finding,) = check_source("def f(:\n", "broken.py")

    assert (finding.code, finding.line) == ("AFC001", 1)
