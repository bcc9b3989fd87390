"""The pytest plugin: fixtures for tests of workflows. Installed with agentflow, nothing to set up.

    async def test_publishes_after_approval(flow, scripted):       # `async def` needs no plugin
        scripted("writer", ["a draft"])
        run = await flow.start(publish, "topic")
        ...

    def test_survives_kill(stage):
        crash_at(publish, "topic", stage=stage)

Fixtures: `stage` (store, scripted models, clock; for plain tests), `flow` (the same, opened, for
``async def`` tests), `agentflow_clock`, `scripted`. With ``--agentflow-replay-every-event``, or
the mark ``agentflow_replay_every_event``, each commit is followed by a replay from the store.
Everything is imported when it is first used: a suite without workflows pays nothing.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from agentflow.testing.clock import ManualClock
    from agentflow.testing.stage import Stage

_OPTION = "--agentflow-replay-every-event"
_MARK = "agentflow_replay_every_event"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("agentflow").addoption(
        _OPTION, action="store_true", help="rebuild each run from its store after every commit"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and what runs ``async def`` tests."""
    config.pluginmanager.register(_Runner(), "agentflow-runner")
    config.addinivalue_line(
        "markers", f"{_MARK}: rebuild each run from its store after every commit of this test"
    )


@pytest.fixture
def agentflow_clock() -> ManualClock:
    """The clock of `stage` and `flow`: it jumps when nothing is left to do but wait."""
    from agentflow.testing.clock import ManualClock  # noqa: PLC0415 -- see the module

    return ManualClock()


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, agentflow_clock: ManualClock
) -> Iterator[Stage]:
    """A store of its own, scripted models, a clock; what it holds is verified at the end."""
    from agentflow.testing.stage import Stage  # noqa: PLC0415 -- see the module

    every = bool(request.config.getoption(_OPTION)) or request.node.get_closest_marker(_MARK)
    made = Stage(
        path=tmp_path / "agentflow.db", clock=agentflow_clock, replay_every_event=bool(every)
    )
    yield made
    if made.path.exists():
        made.verify()


@pytest.fixture
def flow(request: pytest.FixtureRequest, stage: Stage) -> Stage:
    """An open flow on `stage`, for ``async def`` tests; they run on an event loop of their own."""
    if not inspect.iscoroutinefunction(request.function):
        pytest.fail("`flow` is for `async def` tests; take `stage` in a plain one", pytrace=False)
    for mark in ("asyncio", "trio"):  # they have wrapped the test before we can
        if request.node.get_closest_marker(mark):
            pytest.fail(f"drop the mark {mark!r}: `flow` brings an event loop", pytrace=False)
    return stage  # opened in pytest_pyfunc_call, on the test's own event loop


@pytest.fixture
def scripted(stage: Stage) -> Callable[..., str]:
    """Register a scripted model: ``scripted(name, turns)``; returns the model's name."""
    return stage.script


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Open `flow` around an ``async def`` test, on whichever event loop runs it."""
    test = pyfuncitem.obj
    given: dict[str, Any] = pyfuncitem.funcargs
    if _needs_flow(pyfuncitem):
        pyfuncitem.obj = _opened(test, given["flow"])
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def _needs_flow(item: pytest.Function) -> bool:
    return "flow" in item.fixturenames and inspect.iscoroutinefunction(item.obj)


def _opened(test: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
    @functools.wraps(test)
    async def opened(**arguments: Any) -> None:
        async with stage.open() as flow:
            if "flow" in arguments:
                arguments["flow"] = flow
            await test(**arguments)

    return opened


class _Runner:
    """Runs ``async def`` tests that take `flow`, where no other plugin does."""

    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        if not _needs_flow(pyfuncitem):
            return None
        given: dict[str, Any] = pyfuncitem.funcargs
        names = inspect.signature(pyfuncitem.obj).parameters
        asyncio.run(pyfuncitem.obj(**{name: given[name] for name in names if name in given}))
        return True
