"""Code that changed while a run was away: parked with a diff, mended, paid once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agentflow.app import Flow
from agentflow.engine.definitions import Activity, OnMismatch, Registry, Workflow, options_of
from agentflow.errors import RunParkedError
from agentflow.protocols import Store
from agentflow.stored import Append, Appended, Message
from agentflow.testing.stage import Stage
from agentflow.testing.store import WrappedStore

PAID: list[str] = []


async def _pay(prompt: str) -> str:
    PAID.append(prompt)
    return f"answer to {prompt}"


def stage(path: Path, fn: Callable[..., Any], on_mismatch: OnMismatch = "strict") -> Stage:
    """Return a stage whose code is *fn*, as the workflow ``story``."""
    registry = Registry()
    registry.add(Workflow(fn, name="story", on_mismatch=on_mismatch))
    return Stage(path=path, registry=registry)


pay = Activity(_pay, name="pay", options=options_of(retry=1))


async def _bug() -> list[str]:
    found = [await pay("first"), await pay("second")]
    if len(found) < 3:
        msg = "the third is missing"
        raise TypeError(msg)
    return found


async def _mended() -> list[str]:
    return [await pay("first"), await pay("second"), await pay("third")]


async def _edited() -> list[str]:
    return [await pay("first"), await pay("second, please"), await pay("third")]


def run(on: Stage) -> Any:
    """Run the story, under the same id."""
    return on.run(on.registry.workflows["story"], id="story")


@pytest.fixture(autouse=True)
def _nothing_paid() -> None:
    PAID.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database in which the first two calls are paid, and the code has a bug."""
    path = tmp_path / "story.db"
    with pytest.raises(RunParkedError, match="needs_code: TypeError: the third is missing"):
        run(stage(path, _bug))
    return path


def test_mended_code_goes_on_and_pays_nothing_twice(path: Path) -> None:
    """needs_code: run the script again."""
    found = run(stage(path, _mended))

    assert found == ["answer to first", "answer to second", "answer to third"]
    assert PAID == ["first", "second", "third"]
    stage(path, _mended).verify()


def test_the_same_bug_parks_it_again_and_loses_nothing(path: Path) -> None:
    """As often as it is tried."""
    for _ in range(2):
        with pytest.raises(RunParkedError, match="needs_code"):
            run(stage(path, _bug))

    assert run(stage(path, _mended))[2] == "answer to third"
    assert PAID == ["first", "second", "third"]


def test_an_edited_prompt_waits_with_a_diff(path: Path) -> None:
    """Strict: nothing is answered from the log silently, and nothing is paid."""
    with pytest.raises(RunParkedError, match="needs_version") as caught:
        run(stage(path, _edited))

    text = str(caught.value.data["error"])
    assert '- "prompt": "second"' in text
    assert '+ "prompt": "second, please"' in text
    assert PAID == ["first", "second"]
    assert run(stage(path, _mended))[2] == "answer to third"


def test_reuse_keeps_the_recorded_answer(path: Path) -> None:
    """And says so in the log."""
    changed = stage(path, _edited, "reuse")

    assert run(changed) == ["answer to first", "answer to second", "answer to third"]
    assert PAID == ["first", "second", "third"]
    changed.verify()


def test_recall_pays_for_the_changed_call_only(path: Path) -> None:
    """The one before it is answered from the log."""
    changed = stage(path, _edited, "recall")

    assert run(changed) == ["answer to first", "answer to second, please", "answer to third"]
    assert PAID == ["first", "second", "second, please", "third"]
    changed.verify()


def test_an_operator_lets_an_edited_run_go_on(path: Path) -> None:
    """unpause(on_mismatch=…), in a process that has the edited code."""
    edited = stage(path, _edited)

    async def work(flow: Flow) -> Any:
        known = await flow.get("story")
        await known.unpause(on_mismatch="recall", actor="ann")
        return await known.result()

    assert edited.do(work)[1] == "answer to second, please"
    assert PAID == ["first", "second", "second, please", "third"]
    edited.verify()


class _UnpausedMeanwhile(WrappedStore):
    """A store in which somebody lets a run go on just before it is parked."""

    async def append(self, batch: Append) -> Appended:
        """Send the message first, once."""
        if batch.status == "needs_version" and not self.sent:
            self.sent = True
            message = Message(id="m", kind="unpause", data={"on_mismatch": "reuse"})
            await self._inner.send("default", "story", message)
        return await super().append(batch)

    sent = False


def test_a_run_that_is_let_go_on_while_it_is_parked_is_not_parked(path: Path) -> None:
    """Who waits for it does not see it parked in between."""
    edited = stage(path, _edited)
    edited.wrap = lambda store: cast("Store", _UnpausedMeanwhile(store))

    assert run(edited) == ["answer to first", "answer to second", "answer to third"]
    edited.wrap = None
    edited.verify()
