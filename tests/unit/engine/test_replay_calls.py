"""Calls: keys, guards, retries, doubts, cancelled waits; live, after a crash, in a replay."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentflow.engine.context import ActivityCall, require_context
from agentflow.engine.definitions import Activity, Workflow, options_of
from agentflow.errors import (
    ActivityError,
    ApprovalDeniedError,
    Fail,
    InDoubtError,
)
from agentflow.history import events as ev
from agentflow.history.history import history_of, retry_point
from tests.unit.engine.replay_bench import Bench, kinds_of


async def _ask(question: str) -> str:
    raise NotImplementedError


ask = Activity(_ask, name="ask", options=options_of())
careful = Activity(_ask, name="careful", options=options_of(effect="once"))
proud = Activity(_ask, name="proud", options=options_of(on_doubt="fail"))
checked = Activity(
    _ask, name="checked", options=options_of(effect="once", reconcile=lambda question: question)
)


def workflow(fn: Any, **terms: Any) -> Workflow[..., Any]:
    """Return *fn* as a workflow that is in no registry."""
    return Workflow(fn, name="story", **terms)


async def _two() -> list[str]:
    return [await ask("one"), await ask("two")]


async def _branch(name: str) -> str:
    return await ask(f"{name} after {await ask(name)}")


async def _gather() -> list[str]:
    return list(await asyncio.gather(_branch("a"), _branch("b")))


def test_an_intent_is_committed_before_its_attempt_starts() -> None:
    """A sequential call is one commit: result and next intent."""
    bench = Bench(workflow(_two))

    bench.answer("0/ask#1", "first")

    assert bench.kinds == [
        "RunStarted",
        "ActivityScheduled 0/ask#1",
        "ActivityStarted 0/ask#1",
        "ActivityCompleted 0/ask#1",
        "ActivityScheduled 0/ask#2",
        "ActivityStarted 0/ask#2",
    ]
    assert bench.differences() == []


def test_branches_have_keys_of_their_own_and_never_swap_answers() -> None:
    """Whatever comes first, a crash in between included."""
    bench = Bench(workflow(_gather))

    bench.answer("0.2/ask#1", "B")
    bench.crash()
    bench.answer("0.1/ask#1", "A")
    bench.crash()
    bench.answer("0.1/ask#2", "A2")
    bench.answer("0.2/ask#2", "B2")

    assert bench.result == ["A2", "B2"]
    asked = [bench.codec.plain(e.payload, bench.bodies) for e in bench.of(ev.ActivityScheduled)]
    assert asked == [
        b'{"question":"a"}',
        b'{"question":"b"}',
        b'{"question":"b after B"}',
        b'{"question":"a after A"}',
    ]
    assert bench.differences() == []


def test_an_attempt_in_flight_at_a_crash_is_flagged_and_repeated() -> None:
    """Attempt 2 follows the doubt, and its number survives another crash."""
    bench = Bench(workflow(_two))

    bench.crash()
    bench.crash()

    assert bench.kinds[2:] == [
        "ActivityStarted 0/ask#1",
        "ActivityInDoubt 0/ask#1",
        "ActivityStarted 0/ask#1",
        "ActivityInDoubt 0/ask#1",
        "ActivityStarted 0/ask#1",
    ]
    assert bench.running == {"0/ask#1": 3}


async def _careful() -> str:
    return await careful("once")


def test_a_call_with_effect_once_asks_a_person_after_a_crash() -> None:
    """Nothing is repeated before somebody has said so."""
    bench = Bench(workflow(_careful))

    bench.crash()

    (question,) = bench.of(ev.ApprovalRequested)
    assert (question.kind, bench.running) == ("doubt", {})
    bench.decide(question.approval_id)
    assert bench.running == {"0/careful#1": 2}
    assert bench.differences() == []


def test_a_doubt_that_is_denied_raises() -> None:
    """The code sees that the outcome is unknown."""
    bench = Bench(workflow(_careful))
    bench.crash()

    bench.decide(bench.of(ev.ApprovalRequested)[0].approval_id, approved=False, reason="no")

    assert isinstance(bench.error, InDoubtError)
    assert "its outcome is unknown; not repeated by ann: no" in str(bench.error)
    assert bench.differences() == []


def test_a_retry_after_a_denied_doubt_asks_again() -> None:
    """Who retries may decide otherwise; the call is still not repeated by itself."""
    bench = Bench(workflow(_careful))
    bench.crash()
    bench.decide(bench.of(ev.ApprovalRequested)[0].approval_id, approved=False)

    bench.reopen(retry_point(history_of(bench.log)))
    bench.crash()

    first, second = bench.of(ev.ApprovalRequested)
    assert (second.kind, bench.running) == ("doubt", {})
    assert second.approval_id != first.approval_id
    bench.decide(second.approval_id)
    assert bench.running == {"0/careful#1": 2}
    assert bench.differences() == []


async def _proud() -> str:
    try:
        return await proud("x")
    except InDoubtError as e:
        return f"caught {e}"


def test_on_doubt_fail_is_seen_by_code() -> None:
    """The failure is recorded, so a replay sees it too."""
    bench = Bench(workflow(_proud))

    bench.crash()

    assert bench.result == "caught proud: the outcome of attempt 1 is unknown"
    assert bench.differences() == []


async def _checked() -> str:
    return await checked("x")


def test_reconcile_is_asked_again_after_a_crash_while_it_was_asked() -> None:
    """The doubt is recorded once; the question is put until it is answered."""
    bench = Bench(workflow(_checked))

    bench.crash()
    first = kinds_of(bench.commands)
    bench.crash()

    assert first == kinds_of(bench.commands) == ["reconcile 0/checked#1"]
    assert len(bench.of(ev.ActivityInDoubt)) == 1


def test_a_refused_start_waits_and_starts_later() -> None:
    """Pause, cancel, rate: a guard's no leaves the call scheduled."""
    refusals = ["rate", "rate"]

    def guard(event: ev.ActivityStarted, _approval: str | None) -> str | None:
        return refusals.pop() if refusals else None

    bench = Bench(workflow(_two))
    bench.guard = guard

    bench.answer("0/ask#1", "first")
    assert (bench.running, bench.kinds[-1]) == ({}, "ActivityScheduled 0/ask#2")
    bench.step()
    bench.step()

    assert bench.running == {"0/ask#2": 1}
    assert bench.differences() == []


def test_pause_holds_starts_and_lets_outcomes_through() -> None:
    """The outcome of the call in flight is recorded, the next one waits."""
    bench = Bench(workflow(_two))

    bench.pause()
    bench.answer("0/ask#1", "first")
    assert bench.running == {}
    bench.crash()
    assert bench.running == {}
    bench.unpause()

    assert bench.running == {"0/ask#2": 1}
    assert bench.differences() == []


async def _needs_approval() -> str:
    call = ActivityCall(activity=ask, arguments={"question": "x"}, needs_approval=True)
    return str(await require_context("test").call(call))


def test_a_call_that_needs_approval_starts_only_with_it() -> None:
    """The approval is bound to the call's fingerprint."""
    bench = Bench(workflow(_needs_approval))
    (question,) = bench.of(ev.ApprovalRequested)
    assert (question.kind, bench.running) == ("call", {})
    assert question.call_digest == bench.of(ev.ActivityScheduled)[0].fingerprint

    used: list[str | None] = []
    bench.guard = lambda _event, approval: used.append(approval)
    bench.decide(question.approval_id)

    assert used == [question.approval_id]
    assert bench.running == {"0/ask#1": 1}
    assert bench.differences() == []


def test_an_approval_that_is_not_for_this_call_is_seen_by_code() -> None:
    """Single use: the guard's refusal is an outcome."""
    bench = Bench(workflow(_needs_approval))
    bench.guard = lambda _event, _approval: "approval"

    bench.decide(bench.of(ev.ApprovalRequested)[0].approval_id)
    bench.step()

    assert isinstance(bench.error, ApprovalDeniedError)
    assert len(bench.of(ev.ActivityRefused)) == 1
    assert bench.differences() == []


def test_a_denied_call_never_starts() -> None:
    """The code sees who denied it and why."""
    bench = Bench(workflow(_needs_approval))

    bench.decide(bench.of(ev.ApprovalRequested)[0].approval_id, approved=False, reason="too dear")

    assert str(bench.error) == "ask was denied by ann: too dear"
    assert bench.of(ev.ActivityStarted) == []
    assert bench.differences() == []


def test_a_failure_is_tried_again_at_its_time_and_no_earlier() -> None:
    """Back-off survives a crash, and so does the attempt's number."""
    bench = Bench(workflow(_two))

    bench.fail("0/ask#1", ValueError("no"), retry_in_ms=1000)
    bench.crash()
    bench.pass_time(999)
    assert bench.running == {}
    bench.pass_time(1)

    assert bench.running == {"0/ask#1": 2}
    assert bench.of(ev.ActivityInDoubt) == []
    assert bench.differences() == []


async def _catches() -> str:
    try:
        return await ask("x")
    except ActivityError as e:
        return f"caught {e}"


def test_a_final_failure_is_what_code_sees() -> None:
    """Type and message of the last attempt's error."""
    bench = Bench(workflow(_catches))

    bench.fail("0/ask#1", KeyError("which"))

    assert bench.result == "caught KeyError: 'which'"
    assert bench.differences() == []


async def _gives_up() -> str:
    try:
        async with asyncio.timeout(1):
            return await ask("slow")
    except TimeoutError:
        return await ask("instead")


def test_the_outcome_of_a_cancelled_wait_is_recorded_and_not_delivered() -> None:
    """Code gave up; the attempt came back all the same."""
    bench = Bench(workflow(_gives_up))

    bench.pass_time(1000)
    assert kinds_of(bench.commands) == ["cancel 0/ask#1"]
    bench.answer("0/ask#1", "too late")
    bench.crash()
    bench.answer("0/ask#2", "there")

    assert bench.result == "there"
    assert [e.key for e in bench.of(ev.ActivityCompleted)] == ["0/ask#1", "0/ask#2"]
    assert bench.differences() == []


def test_a_wait_that_is_given_up_before_its_start_never_starts() -> None:
    """The call is cancelled where it is, with no command to anybody."""
    bench = Bench(workflow(_two))
    bench.guard = lambda event, _approval: "rate" if event.key == "0/ask#2" else None
    bench.answer("0/ask#1", "first")

    bench.cancel()

    assert bench.commands == []
    assert [e.key for e in bench.of(ev.ActivityCancelled)] == ["0/ask#2"]
    assert bench.machine.ending is not None
    assert bench.machine.ending.kind == "cancelled"
    assert bench.differences() == []


async def _same_drain() -> str:
    task = asyncio.ensure_future(_branch("never"))
    await asyncio.sleep(0)
    task.cancel()
    return await ask("only")


def test_what_is_asked_and_given_up_in_one_drain_was_never_asked() -> None:
    """No intent, no cost, and the next keys are what they are."""
    bench = Bench(workflow(_same_drain))

    assert bench.kinds == ["RunStarted", "ActivityScheduled 0/ask#1", "ActivityStarted 0/ask#1"]
    assert bench.differences() == []


async def _keyed() -> list[str]:
    first = await ask.with_options(key="b")("b")
    return [first, await ask.with_options(key="a")("a")]


async def _keyed_swapped() -> list[str]:
    first = await ask.with_options(key="a")("a")
    return [await ask.with_options(key="b")("b"), first]


def test_explicit_keys_survive_a_change_of_order() -> None:
    """An outcome that comes before code asks for it waits for the code."""
    bench = Bench(workflow(_keyed))
    bench.answer("@b", "B")

    bench.crash(workflow(_keyed_swapped))
    bench.answer("@a", "A")

    assert bench.result == ["B", "A"]
    assert len(bench.of(ev.ActivityScheduled)) == 2


async def _twice() -> list[str]:
    one = ask.with_options(key="same")
    return [await one("x"), await one("y")]


def test_an_explicit_key_is_used_once() -> None:
    """A second use is a bug of the code, with the key's name."""
    bench = Bench(workflow(_twice))

    bench.answer("@same", "x")

    assert bench.parked.startswith("needs_code: DuplicateKeyError: key 'same' is used twice")


async def _forgets() -> str:
    task = asyncio.ensure_future(_branch("forgotten"))
    await asyncio.sleep(0)
    first = await ask("mine")
    del task
    return first


def test_an_end_cancels_leftover_tasks_and_refuses_their_commands() -> None:
    """The function has returned: what it left running is cancelled, and cannot ask any more."""
    bench = Bench(workflow(_forgets))

    bench.step(bench.completed("0/ask#1", "done"))
    assert kinds_of(bench.commands) == ["cancel 0.1/ask#1"]
    bench.step(bench.stopped("0.1/ask#1"))

    assert bench.kinds[-2:] == ["ActivityCancelled 0.1/ask#1", "RunCompleted"]
    assert bench.differences() == []


async def _cleans_up() -> None:
    try:
        await ask("work")
    finally:
        await ask("clean up")


def test_cancellation_lets_code_clean_up() -> None:
    """The clean-up is recorded as any call; the run ends as cancelled."""
    bench = Bench(workflow(_cleans_up))

    bench.cancel()
    bench.step(bench.stopped("0/ask#1"))
    bench.crash()
    bench.answer("0/ask#2", "clean")

    assert bench.kinds[-1] == "RunCancelled"
    assert bench.differences() == []


async def _stubborn() -> str:
    try:
        await ask("work")
    except asyncio.CancelledError:
        return "not today"
    return "done"


def test_code_that_catches_its_cancellation_completes() -> None:
    """As in asyncio: who swallows it, goes on."""
    bench = Bench(workflow(_stubborn))

    bench.cancel()
    bench.step(bench.stopped("0/ask#1"))

    assert bench.result == "not today"
    assert bench.differences() == []


async def _refuses() -> None:
    msg = "no"
    raise Fail(msg)


class _Custom(Exception):  # noqa: N818 -- a user's own
    pass


async def _raises_own() -> None:
    raise _Custom("mine")


def test_fail_and_fail_on_end_the_run() -> None:
    """Others are bugs."""
    assert Bench(workflow(_refuses)).kinds[-1] == "RunFailed"
    assert Bench(workflow(_raises_own, fail_on=(_Custom,))).kinds[-1] == "RunFailed"
    assert Bench(workflow(_raises_own)).parked.startswith("needs_code: _Custom: mine\nTraceback")


@pytest.mark.parametrize("crash", [False, True])
def test_a_bug_parks_the_run_and_keeps_the_outcome(crash: bool) -> None:  # noqa: FBT001 -- a row
    """Mend the code, go on: the paid answer is in the log."""
    mended = False

    async def buggy() -> str:
        answer = await ask("x")
        return answer if mended else answer + 1  # type: ignore[operator]

    bench = Bench(workflow(buggy))
    bench.answer("0/ask#1", "paid")
    assert bench.parked.startswith("needs_code: TypeError")
    assert bench.kinds[-1] == "ActivityCompleted 0/ask#1"

    mended = True
    if crash:
        bench.crash()
    else:
        bench.reload()
        bench.step()

    assert (bench.parked, bench.result) == ("", "paid")
    assert bench.running == {}
    assert len(bench.of(ev.ActivityStarted)) == 1


def test_outcomes_that_come_while_parked_are_kept() -> None:
    """A fact commits, whatever state the code is in."""
    mended = False

    async def buggy() -> list[str]:
        async def one() -> str:
            answer = await ask("a")
            if not mended:
                raise TypeError(answer)
            return answer

        return list(await asyncio.gather(one(), _branch("b")))

    bench = Bench(workflow(buggy))
    bench.answer("0.1/ask#1", "A")
    assert "TypeError" in bench.parked
    bench.answer("0.2/ask#1", "B")

    mended = True
    bench.crash()
    bench.answer("0.2/ask#2", "B2")

    assert bench.result == ["A", "B2"]
    assert bench.of(ev.ActivityInDoubt) == []
