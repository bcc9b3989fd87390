"""The doors of the world: shut for workflow code, open for everyone else."""

# ruff: noqa: PLW0108 -- the lambdas are the user code that calls
from __future__ import annotations

import asyncio
import builtins
import importlib
import io
import os
import pickle
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentflow.engine import doors
from agentflow.engine.doors import activation_doors, doors_lifted, guard_namespace
from agentflow.engine.loop import WorkflowLoop
from agentflow.errors import ForbiddenCallError


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    """Each test begins with the wrappers in place."""
    doors.install_doors()
    yield
    assert not doors.is_activation()


@pytest.mark.parametrize(
    ("name", "hint", "call"),
    [
        ("time.time", "agentflow.now()", lambda: time.time()),
        ("time.monotonic", "agentflow.now()", lambda: time.monotonic()),
        ("time.sleep", "asyncio.sleep", lambda: time.sleep(0)),
        ("random.random", "agentflow.random()", lambda: random.random()),
        ("random.shuffle", "agentflow.random()", lambda: random.shuffle([1])),
        ("uuid.uuid1", "agentflow.uuid4()", lambda: uuid.uuid1()),
        ("uuid.uuid4", "agentflow.uuid4()", lambda: uuid.uuid4()),
        ("os.urandom", "agentflow.random()", lambda: os.urandom(1)),
        ("secrets.token_hex", "agentflow.random()", lambda: secrets.token_hex()),
        ("open", "@activity", lambda: open(os.devnull)),  # noqa: SIM115, PTH123
        ("io.open", "@activity", lambda: io.open(os.devnull)),  # noqa: SIM115, UP020
        ("io.open", "@activity", lambda: Path(os.devnull).read_text()),
        ("input", "agentflow.approve", lambda: input()),
        ("socket.socket", "@tool", lambda: socket.socket()),
        ("socket.getaddrinfo", "@tool", lambda: socket.getaddrinfo("localhost", 80)),
        ("threading.Thread.start", "@tool", lambda: threading.Thread().start()),
        ("subprocess.Popen", "@tool", lambda: subprocess.run(["true"], check=False)),
        ("os.system", "@tool", lambda: os.system("true")),  # noqa: S605
        ("os.fork", "@tool", lambda: os.fork()),
    ],
)
def test_user_code_is_refused_with_the_name_of_the_right_door(
    name: str, hint: str, call: Callable[[], object]
) -> None:
    """In an activation only."""
    with activation_doors(), pytest.raises(ForbiddenCallError) as caught:
        call()

    assert caught.value.data == {"function": name}
    assert hint in caught.value.hint


def test_outside_of_an_activation_nothing_is_refused() -> None:
    """And nothing looks different to those who look closely."""

    class Meter:
        clock: Any = time.monotonic

    assert time.time() > 0
    assert Meter().clock() > 0
    assert uuid.uuid4().version == 4
    with open(os.devnull) as file:  # noqa: PTH123
        assert file.read() == ""
    for function in (time.time, random.choice, uuid.uuid4, builtins.open):
        assert pickle.loads(pickle.dumps(function)) is not None  # noqa: S301
    assert time.time.__name__ == "time"
    assert "Return the current time" in str(time.time.__doc__)


def test_the_loop_shuts_the_doors_while_it_runs_code() -> None:
    """Drain and evict both run code of the user."""
    seen: list[str] = []

    class Host:
        def timer_started(self, timer: object) -> None:
            pass

        def timer_cancelled(self, timer: object) -> None:
            pass

    async def main() -> None:
        try:
            time.time()
        except ForbiddenCallError:
            seen.append("drain")
        try:
            await asyncio.sleep(5)
        finally:
            try:
                random.random()
            except ForbiddenCallError:
                seen.append("evict")

    loop = WorkflowLoop(Host())
    loop.create_task(main())
    loop.drain()
    assert time.time() > 0
    loop.evict()

    assert seen == ["drain", "evict"]


def _library(source: str, filename: str) -> dict[str, Any]:
    module = types.ModuleType("library")
    module.__file__ = filename
    exec(compile(source, filename, "exec"), vars(module))  # noqa: S102
    return vars(module)


def test_libraries_may_use_clocks_but_not_sockets() -> None:
    """A metrics library may time itself; an effect is one whoever causes it."""
    source = "import time, socket\ndef clock(): return time.time()\ndef call(): socket.socket()"
    library = _library(source, "/venv/lib/python3/site-packages/library.py")

    with activation_doors():
        assert library["clock"]() > 0
        assert uuid.UUID(int=1).version is None
        with pytest.raises(ForbiddenCallError, match="socket"):
            library["call"]()


def test_a_dataclass_of_the_user_is_the_user_and_of_a_library_is_not() -> None:
    """Their __init__ has no file of its own."""

    @dataclass
    class Mine:
        at: float = field(default_factory=time.time)

    source = (
        "import sys, time, dataclasses\nsys.modules.setdefault(__name__, sys.modules['__main__'])\n"
        "@dataclasses.dataclass\nclass Theirs:\n"
        "    at: float = dataclasses.field(default_factory=time.time)\n"
    )
    theirs = types.ModuleType("their_library")
    theirs.__file__ = "/venv/lib/python3/site-packages/their_library.py"
    sys.modules["their_library"] = theirs
    try:
        exec(compile(source, theirs.__file__, "exec"), vars(theirs))  # noqa: S102
        with activation_doors():
            assert theirs.Theirs().at > 0
            with pytest.raises(ForbiddenCallError):
                Mine()
    finally:
        del sys.modules["their_library"]


def test_modules_can_be_imported_in_a_workflow(tmp_path: Path) -> None:
    """Also those that read the clock, or start a thread, when they are imported."""
    text = "import threading, time\nAT = time.time()\nT = threading.Thread(target=int)\nT.start()\n"
    (tmp_path / "imported_late.py").write_text(text)
    sys.path.insert(0, str(tmp_path))
    try:
        with activation_doors():
            module = importlib.import_module("imported_late")
        module.T.join()
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("imported_late", None)

    assert module.AT > 0


def test_other_threads_are_not_affected() -> None:
    """One thread's activation is no affair of the next one's."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # the thread exists before the doors shut
        with activation_doors(), doors_lifted():
            pass
        started, done = threading.Event(), threading.Event()

        def wait_and_look() -> float:
            started.wait(5)
            now = time.time()
            done.set()
            return now

        answer = pool.submit(wait_and_look)
        with activation_doors():
            started.set()
            assert done.wait(5)
        assert answer.result() > 0


def test_activations_nest_and_survive_exceptions() -> None:
    """The doors open when the outermost one ends, however it ends."""
    with pytest.raises(KeyError), activation_doors():  # noqa: PT012
        with pytest.raises(ValueError, match="inner"), activation_doors():
            raise ValueError("inner")
        assert doors.is_activation()
        raise KeyError

    assert not doors.is_activation()


def test_the_engine_can_lift_the_doors_for_itself() -> None:
    """A log handler that opens a socket is not workflow code."""
    with activation_doors():
        with doors_lifted():
            assert time.time() > 0
            socket.socket().close()
        with pytest.raises(ForbiddenCallError):
            time.time()


def test_uuid4_is_seen_though_it_was_imported_by_name() -> None:
    """Through the os.urandom that it calls; and a library's uuid4 is not."""
    stock = next(original for owner, name, original, _ in doors._undo if name == "uuid4")
    library = _library("def make(f): return f()", "/venv/lib/python3/site-packages/library.py")

    with activation_doors():
        assert library["make"](stock).version == 4
        with pytest.raises(ForbiddenCallError):
            stock()


def test_names_taken_before_can_be_guarded() -> None:
    """`from random import choice` precedes the import of agentflow in most files."""
    stock = next(original for _, name, original, _ in doors._undo if name == "randint")
    namespace = {"randint": stock, "other": len}

    replaced = guard_namespace(namespace)

    assert (replaced, namespace["other"]) == (["randint"], len)
    with activation_doors(), pytest.raises(ForbiddenCallError):
        namespace["randint"](1, 2)


def test_uninstalling_restores_what_nobody_has_patched_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who patched over us keeps the patch."""
    patched = lambda: 42.0  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", patched)
        wrapped_sleep = time.sleep
        doors.uninstall_doors()
        assert (time.time(), time.sleep is wrapped_sleep) == (42.0, False)
    # monkeypatch has put our wrapper back; it passes on, and install wraps nothing twice.
    doors.install_doors()
    with activation_doors(), pytest.raises(ForbiddenCallError):
        time.sleep(0)


@pytest.mark.parametrize(
    ("filename", "is_user"),
    [
        (__file__, True),
        ("/srv/me/flow.py", True),
        (os.__file__, False),
        ("<frozen importlib._bootstrap>", False),
        ("/venv/lib/python3.12/site-packages/x/y.py", False),
        ("C:\\venv\\Lib\\site-packages\\x.py", False),
        (doors.__file__, False),
    ],
)
def test_whose_file_it_is(filename: str, is_user: bool) -> None:  # noqa: FBT001
    """The standard library, what is installed and agentflow are not the user's."""
    assert doors.is_user_file(filename) is is_user
