"""Changed code and cut histories: mismatch, patched, segments, retry, recall."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from agentflow.engine.commands import Arrival
from agentflow.engine.definitions import REGISTRY, Activity, Workflow, options_of
from agentflow.engine.functions import (
    continue_as_new,
    patched,
    random,
    start_child,
    uuid4,
    wait_signal,
)
from agentflow.errors import ActivityError
from agentflow.history import events as ev
from agentflow.history.history import history_of, retry_point
from tests.unit.engine.replay_bench import Bench


@dataclass
class Letter:
    """A type that gets a new field."""

    text: str
    copies: int = 1


async def _ask(question: str) -> str:
    raise NotImplementedError


async def _post(letter: Letter) -> str:
    raise NotImplementedError


async def _errand(number: int) -> int:
    raise NotImplementedError


ask = Activity(_ask, name="ask", options=options_of())
other = Activity(_ask, name="other", options=options_of())
post = Activity(_post, name="post", options=options_of())
errand = Workflow(_errand, name="errand")


def workflow(fn: Any, **terms: Any) -> Workflow[..., Any]:
    """Return *fn* as a workflow that is in no registry."""
    return Workflow(fn, name="story", **terms)


def prompts(*texts: str, call: Any = ask, **terms: Any) -> Workflow[..., Any]:
    """Return a workflow that asks these questions, one after the other."""

    async def story() -> list[str]:
        return [await call(text) for text in texts]

    return workflow(story, **terms)


def answered(*values: str, texts: tuple[str, ...] = ("one", "two", "three")) -> Bench:
    """Return a bench whose first questions have answers."""
    bench = Bench(prompts(*texts))
    for number, value in enumerate(values, 1):
        bench.answer(f"0/ask#{number}", value)
    return bench


def test_an_edited_prompt_is_never_answered_from_the_log_silently() -> None:
    """Strict: the run waits for this version of the code, and says what changed."""
    bench = answered("1", "2")

    bench.crash(prompts("one", "two, please", "three"))

    assert bench.parked == (
        "needs_version: 0/ask#2: the code asks for ask with other input than was recorded\n"
        "--- recorded\n"
        "+++ asked now\n"
        "@@ -1,3 +1,3 @@\n"
        " {\n"
        '- "question": "two"\n'
        '+ "question": "two, please"\n'
        " }"
    )
    assert bench.of(ev.ActivityStarted)[-1].key == "0/ask#3"
    assert bench.running == {}


def test_the_old_code_goes_on_where_the_new_one_was_parked() -> None:
    """Nothing was written by the version that did not fit, but the doubt is settled now."""
    bench = answered("1", "2")
    bench.crash(prompts("one", "two, please", "three"))

    bench.crash(prompts("one", "two", "three"))
    bench.answer("0/ask#3", "3")

    assert bench.result == ["1", "2", "3"]
    assert bench.differences() == []


def test_reuse_keeps_the_recorded_answer_and_says_so_in_the_log() -> None:
    """Accepted once; the next replay accepts it by the log."""
    bench = answered("1", "2")

    bench.crash(prompts("one", "two, please", "three", on_mismatch="reuse"))
    assert [e.key for e in bench.of(ev.MismatchAccepted)] == ["0/ask#2"]
    bench.crash(prompts("one", "two, please", "three"))
    bench.answer("0/ask#3", "3")

    assert bench.result == ["1", "2", "3"]
    assert len(bench.of(ev.MismatchAccepted)) == 1
    assert bench.differences() == []


def test_recall_pays_for_the_changed_call_and_keeps_those_before() -> None:
    """What came after the changed call is void; equal calls are answered by what is void."""
    bench = answered("1", "2", "3", texts=("one", "two", "three", "four"))

    bench.crash(prompts("one", "two, please", "three", "four", on_mismatch="recall"))

    assert bench.running == {"0/ask#2": 2}
    bench.answer("0/ask#2", "2 again")
    memo = bench.of(ev.ActivityCompleted)[-1]
    assert (memo.key, memo.memo_seq is not None) == ("0/ask#3", True)
    bench.answer("0/ask#4", "4")
    assert bench.result == ["1", "2 again", "3", "4"]
    assert bench.differences() == []


def test_an_operator_may_accept_a_mismatch() -> None:
    """unpause(on_mismatch=…) is in the log, and holds for this run."""
    bench = answered("1")
    edited = prompts("one!", "two", "three")
    bench.crash(edited)
    assert bench.parked.startswith("needs_version")

    bench.unpause("reuse")
    bench.crash(edited)

    assert bench.parked == ""
    assert [e.key for e in bench.of(ev.MismatchAccepted)] == ["0/ask#1"]


def test_another_activity_under_the_same_key_is_named() -> None:
    """An explicit key that means something else now."""

    async def before() -> str:
        return await ask.with_options(key="k")("x")

    async def after() -> str:
        return await other.with_options(key="k")("x")

    bench = Bench(workflow(before))
    bench.answer("@k", "1")

    bench.crash(workflow(after))

    first = bench.parked.splitlines()[0]
    assert first == "needs_version: @k: the code asks for other, the history holds ask"


def test_code_that_takes_another_course_pays_nothing_new_first() -> None:
    """A recorded call that nobody asks for, a new one beside it: parked, both named."""
    bench = answered("1")

    bench.crash(prompts("one", call=other))

    assert "the history holds 0/ask#1, which the code did not ask for" in bench.parked
    assert "asked, not recorded: 0/other#1" in bench.parked
    assert [e.name for e in bench.of(ev.ActivityScheduled)] == ["ask", "ask"]


def test_code_that_only_adds_a_branch_goes_on() -> None:
    """Keys are by task: the old branch finds its answers, the new one asks."""

    def story(names: tuple[str, ...]) -> Callable[[], Any]:
        async def branch(name: str) -> str:
            return await ask(name)

        async def run() -> list[str]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(branch(n), name=n) for n in names]
            return [t.result() for t in tasks]

        return run

    bench = Bench(workflow(story(("a",))))

    bench.crash(workflow(story(("new", "a"))))

    assert bench.parked == ""
    assert sorted(bench.running) == ["0.a/ask#1", "0.new/ask#1"]


def test_a_type_that_got_a_field_with_a_default_is_no_edit() -> None:
    """The recorded input is decoded and encoded with today's type before it is compared."""

    @dataclass
    class OldLetter:
        text: str

    async def old_fn(letter: OldLetter) -> str:
        raise NotImplementedError

    old_fn.__annotations__ = {"letter": OldLetter, "return": str}
    old = Activity(old_fn, name="post", options=options_of())

    async def before() -> str:
        return await old(OldLetter("hi"))

    async def after() -> str:
        return await post(Letter("hi"))

    async def edited() -> str:
        return await post(Letter("hi", copies=2))

    bench = Bench(workflow(before))
    bench.crash(workflow(after))
    assert (bench.parked, bench.running) == ("", {"0/post#1": 2})

    bench.crash(workflow(edited))
    assert '+  "copies": 2,' in bench.parked


async def _old() -> str:
    return await ask("old")


async def _patched() -> list[str]:
    first = await ask("new") if patched("better") else await ask("old")
    second = await ask("second")
    return [first, second, str(patched("better"))]


def test_patched_is_decided_at_its_first_call() -> None:
    """Old runs keep the old branch, new runs take the new one; both for ever."""
    old = Bench(workflow(_old))
    old.crash(workflow(_patched))
    old.answer("0/ask#1", "1")
    old.crash()
    old.answer("0/ask#2", "2")
    new = Bench(workflow(_patched))
    new.crash()
    new.answer("0/ask#1", "1")
    new.answer("0/ask#2", "2")

    assert (old.result, new.result) == (["1", "2", "False"], ["1", "2", "True"])
    assert [e.taken for e in old.of(ev.PatchMarked)] == [False]
    assert [e.taken for e in new.of(ev.PatchMarked)] == [True]
    assert old.differences() == new.differences() == []


# --- segments -------------------------------------------------------------------------------


async def _segments(n: int, seen: list[str]) -> list[str]:
    answer = await ask(f"segment {n}")
    draw = f"{random().random():.6f}"
    if n:
        asyncio.ensure_future(ask("left over"))  # noqa: RUF006 -- left on purpose
        await asyncio.sleep(0)
        continue_as_new(n - 1, [*seen, answer, draw])
    return [*seen, answer, draw, await wait_signal("carried", str)]


segments = Workflow(_segments, name="test_replay_segments")
REGISTRY.add(segments)


def test_a_segment_begins_anew_with_what_nobody_has_read() -> None:
    """Same run, same keys, other calls; unread signals are carried over."""
    bench = Bench(segments, 1, [])
    bench.signal("carried", "hello")

    bench.answer("0/ask#1", "first")
    if "0.1/ask#1" in bench.running:
        bench.step(bench.stopped("0.1/ask#1"))
    (start,) = bench.of(ev.RunContinued)
    assert bench.log[start.seq].seq == start.seq + 1
    bench.crash()
    bench.answer("0/ask#1", "second")

    assert bench.result is not None
    assert [bench.result[0], bench.result[2], bench.result[4]] == ["first", "second", "hello"]
    assert bench.result[1] != bench.result[3]
    assert len(bench.of(ev.SignalReceived)) == 2
    assert bench.differences() == []


async def _children_of_segments(n: int) -> list[int]:
    child = await start_child(errand, n)
    await ask("begun")
    if n:
        continue_as_new(n - 1)
    return [await child.result()]


children_of_segments = Workflow(_children_of_segments, name="test_replay_children_of_segments")
REGISTRY.add(children_of_segments)


def test_a_child_of_an_older_segment_does_not_answer_for_a_newer_one() -> None:
    """The key is the same, the child is another."""
    bench = Bench(children_of_segments, 1)
    old = bench.of(ev.ChildStarted)[0].child_id
    bench.answer("0/ask#1", "x")
    bench.crash()
    bench.answer("0/ask#1", "y")

    late = ev.ChildFinished(key="0/errand#1", child_id=old, status="cancelled")
    bench.step(Arrival(event=late))
    assert bench.machine.ending is None
    bench.crash()
    bench.child_ended("0/errand#1", 7)

    assert bench.result == [7]
    assert bench.differences() == []


# --- cuts -----------------------------------------------------------------------------------


async def _fails_second() -> list[str]:
    return [await ask("one"), await ask("two"), str(uuid4())]


def failed_run() -> Bench:
    """Return a run whose second call failed for good after two attempts."""
    bench = Bench(workflow(_fails_second))
    bench.answer("0/ask#1", "1")
    bench.fail("0/ask#2", ValueError("down"), retry_in_ms=0)
    bench.step()
    bench.fail("0/ask#2", ValueError("down"))
    assert bench.kinds[-1] == "RunFailed"
    return bench


def test_a_retry_repeats_only_what_failed() -> None:
    """The attempt's number goes on; the answer before it is in the log."""
    bench = failed_run()

    bench.reopen(retry_point(history_of(bench.log)))
    bench.crash()
    assert bench.running == {"0/ask#2": 3}
    bench.crash()
    assert bench.running == {"0/ask#2": 4}
    bench.answer("0/ask#2", "2")

    assert bench.result[:2] == ["1", "2"]
    assert [e.attempt for e in bench.of(ev.ActivityInDoubt)] == [3]
    assert bench.differences() == []


def test_attempts_before_a_cut_do_not_count_as_tries() -> None:
    """A retry policy of three tries has three again; the numbers are never used twice."""
    bench = failed_run()

    bench.reopen(retry_point(history_of(bench.log)))
    bench.crash()

    call = bench.machine.calls["0/ask#2"]
    assert (call.attempt, call.attempt - call.attempt_base) == (3, 1)


def test_a_cut_before_an_answered_call_answers_it_from_what_is_void() -> None:
    """Recorded again, paid never again."""
    bench = failed_run()

    bench.reopen(1)
    bench.crash()

    memo = bench.of(ev.ActivityCompleted)[-1]
    assert (memo.key, memo.memo_seq, memo.attempt) == ("0/ask#1", 4, 1)
    assert list(bench.running) == ["0/ask#2"]
    assert bench.differences() == []


def test_draws_after_a_cut_are_other_draws() -> None:
    """The cut's id is mixed in."""
    results = []
    for cuts in range(2):
        bench = failed_run()
        for _ in range(cuts + 1):
            bench.reopen(retry_point(history_of(bench.log)) if bench.error else 4)
            bench.crash()
        bench.answer("0/ask#2", "2")
        results.append(bench.result[2])

    assert results[0] != results[1]


async def _with_child() -> list[Any]:
    child = await start_child(errand, 1)
    try:
        value = await child.result()
    except ActivityError:
        value = -1
    return [value, await ask("after")]


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_child_before_a_cut_answers_if_it_completed(status: str) -> None:
    """One that failed is started anew, under another id."""
    bench = Bench(workflow(_with_child))
    first = bench.of(ev.ChildStarted)[0].child_id
    value: Any = 5 if status == "completed" else ActivityError("no")
    bench.child_ended("0/errand#1", value, status)
    if status == "completed":
        bench.fail("0/ask#1", ValueError("no"))
    assert bench.kinds[-1] == "RunFailed"

    bench.reopen(1)
    bench.crash()

    again = bench.of(ev.ChildStarted)[-1].child_id
    if status == "completed":
        assert (again, list(bench.running)) == (first, ["0/ask#1"])
    else:
        assert again != first
        bench.child_ended("0/errand#1", 6)
        assert list(bench.running) == ["0/ask#1"]
    assert bench.differences() == []
