"""`list`, `show`, `watch`, `cost`, `explain`: what people see of runs, and what programs get."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentflow.testing.loopback import Answer, LoopbackServer
from tests.acceptance.cli_driver import call, command, effects, ended, flow, process, said, until

PRICED = "openai-chat:gpt-6-sol"
UNPRICED = "openai-chat:a-model-without-a-price"
TURNS = [
    Answer(calls=(("cli_search", {"query": "crash"}),), input_tokens=1_000, output_tokens=100),
    Answer(text="Write it down.", input_tokens=2_000, output_tokens=50, cached_tokens=1_000),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose database has runs of all kinds; tests only read it."""
    made = tmp_path_factory.mktemp("look")
    with LoopbackServer(TURNS) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setenv("OPENAI_BASE_URL", server.openai_url)
        patch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
        tagged = ("--tag", "night", "--tag", "blue")
        for id_, model in (("agent-1", PRICED), ("agent-2", UNPRICED)):
            asked = (flow("cli_ask_model"), model, "What to do?")
            assert call("run", *asked, "--id", id_, *tagged).json == "Write it down."
        call("run", flow("cli_pages"), "2", "--id", "pages-1", "--tag", "blue")
        call("run", flow("cli_fails"), "this", "--id", "fails-1")
        call("run", flow("cli_question"), "ship it?", "--id", "question-1")
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in that folder."""
    monkeypatch.chdir(folder)


def ids(*words: str) -> list[str]:
    """Return the ids that a list shows."""
    return [run["id"] for run in call("list", *words, "--json").json["items"]]


def test_list_is_newest_first_and_filters() -> None:
    """By status, tag, workflow and time."""
    assert ids() == ["question-1", "fails-1", "pages-1", "agent-2", "agent-1"]
    assert ids("--status", "failed", "--status", "waiting") == ["question-1", "fails-1"]
    assert ids("--tag", "blue") == ["pages-1", "agent-2", "agent-1"]
    assert ids("--workflow", "cli_pages") == ["pages-1"]
    assert ids("--since", "1h") == ids()
    assert ids("--since", "2999-01-01") == []


def test_a_list_says_that_it_is_cut() -> None:
    """`truncated`, and a line on stderr for people."""
    cut = call("list", "--limit", "2")

    assert call("list", "--limit", "2", "--json").json["truncated"] is True
    assert call("list", "--limit", "5", "--json").json["truncated"] is False
    assert len(cut.out.splitlines()) == 3
    assert cut.err == "only the first 2 runs are shown; --limit shows more\n"


def test_list_is_a_table_without_colours_in_a_pipe() -> None:
    """Nothing is cut off, no line ends with spaces."""
    lines = call("list").out.splitlines()

    assert lines[0].split() == ["RUN", "STATUS", "WORKFLOW", "STARTED", "TOOK", "EVENTS", "WAITS",
                                "FOR"]  # fmt: skip
    assert lines[1].startswith("question-1  waiting    cli_question")
    assert lines[1].endswith("approval: ship it?")
    assert all(line == line.rstrip() and "\x1b" not in line for line in lines)


def test_show_tells_state_result_and_cost() -> None:
    """For people and for programs."""
    shown = call("show", "agent-1").out
    run = call("show", "agent-1", "--json").json["run"]

    assert "status    completed" in shown
    assert 'result    "Write it down."' in shown
    assert run["result"] == "Write it down."
    assert run["input"] == {"model": PRICED, "question": "What to do?"}
    assert run["cost"]["calls"] == 3
    assert not [name for name in run if name.startswith("_")]


def test_show_events_has_every_event_with_its_data() -> None:
    """Numbered from 1; --limit cuts."""
    shown = call("show", "pages-1", "--events", "--json").json
    history = shown["run"]["history"]

    assert [event["seq"] for event in history] == list(range(1, len(history) + 1))
    assert history[0]["kind"] == "RunStarted"
    assert history[0]["payload"] == {"count": 2}
    assert history[-1]["payload"] == ["page 0 for me", "page 1 for me"]
    assert call("show", "pages-1", "--events", "--limit", "3", "--json").json["truncated"] is True
    assert "RunCompleted" in call("show", "pages-1", "--events").out


def test_show_steps_has_each_call_with_attempts_and_cost() -> None:
    """Model calls and tools, in their order."""
    steps = call("show", "agent-1", "--steps", "--json").json["run"]["steps"]

    assert [(s["name"], s["label"], s["state"], s["attempts"]) for s in steps] == [
        ("llm_call", "scout", "completed", 1),
        ("cli_search", "scout", "completed", 1),
        ("llm_call", "scout", "completed", 1),
    ]
    assert steps[1]["cost"]["cost_usd"] == "0.005"
    assert "cli_search (scout)" in call("show", "agent-1", "--steps").out


def test_show_messages_is_one_conversation() -> None:
    """What was said, once, although each call sent all of it."""
    (conversation,) = call("show", "agent-1", "--messages", "--json").json["run"]["conversations"]
    said = [(m["role"], p["type"]) for m in conversation["messages"] for p in m["parts"]]

    assert said == [
        ("user", "text"),
        ("assistant", "tool_call"),
        ("user", "tool_result"),
        ("assistant", "text"),
    ]
    assert (conversation["agent"], conversation["instructions"]) == ("scout", "Look it up.")
    assert len(conversation["calls"]) == 2
    text = call("show", "agent-1", "--messages").out
    assert 'assistant  calls cli_search({"query": "crash"})' in text
    assert "user       result of cli_search: found crash" in text


def test_cost_is_exact_and_says_what_it_covers() -> None:
    """Two model calls and a tool that costs 0.005 a call."""
    done = call("cost", "agent-1")
    found = call("cost", "agent-1", "--json").json
    lines = call("explain", "agent-1", "--json").json["items"]

    total = found["total"]
    assert (total["calls"], total["priced"], total["is_complete"]) == (3, 3, True)
    assert total["coverage"] == "priced 3 of 3 calls"
    assert f"total ${total['cost_usd']} (priced 3 of 3 calls)" in done.out.splitlines()
    assert [item["group"] for item in found["items"]].count("0/cli_search#1") == 1
    assert lines[1]["cost_usd"] == "0.005"


def test_an_unknown_price_is_never_zero() -> None:
    """It is counted as not covered, and the total becomes a lower bound."""
    by_model = {i["group"]: i for i in call("cost", "--by", "model", "--json").json["items"]}
    done = call("cost", "agent-2")

    assert by_model[UNPRICED]["cost_usd"] is None
    assert by_model[UNPRICED]["unpriced"] == 2
    assert done.out.splitlines()[-1] == "total ≥ $0.005 (priced 1 of 3 calls; 2 unpriced)"
    assert "unknown" in done.out


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("run", {"agent-1", "agent-2"}),
        ("model", {PRICED, UNPRICED, "(tools)"}),
        ("tool", {"cli_search"}),
        ("agent", {"scout"}),
        ("tag", {"night", "blue"}),
    ],
)
def test_cost_by(by: str, groups: set[str]) -> None:
    """Each way to look at it; tags overlap, so that their total is not their sum."""
    found = call("cost", "--by", by, "--json").json

    assert {item["group"] for item in found["items"]} == groups
    assert found["by"] == by
    kind = {"tool": 2, "agent": 4}.get(by, 6)
    assert found["total"]["calls"] == kind


def test_cost_by_day_and_attempt() -> None:
    """A day is an ISO date; an attempt names its run."""
    (day,) = call("cost", "--by", "day", "--json").json["items"]
    attempts = call("cost", "--by", "attempt", "--json").json["items"]

    assert len(day["group"].split("-")) == 3
    assert {item["group"].split()[0] for item in attempts} == {"agent-1", "agent-2"}


def test_nothing_paid_is_said_in_words() -> None:
    """Zero and unknown are told apart."""
    assert call("cost", "pages-1").out == "nothing was paid: no model call and no priced tool\n"


def test_explain_has_quantity_times_price_with_its_source() -> None:
    """Every amount can be checked by hand."""
    text = call("explain", "agent-1").out
    (first, *_) = call("explain", "agent-1", "--json").json["items"]
    lines = {line["unit"]: line for line in first["lines"]}

    assert "prices: genai-prices" in text
    assert "0/llm_call#1 attempt 1  model scout" in text
    assert lines["input"]["quantity"] == 1_000
    assert lines["output"]["quantity"] == 100
    assert first["price_source"] == "genai-prices"
    assert first["cost_usd"] is not None
    assert "no price is known" in call("explain", "agent-2").out


def test_watch_shows_a_run_that_has_ended_and_its_exit_code() -> None:
    """As `run` would have shown it."""
    good, bad = call("watch", "pages-1"), call("watch", "fails-1")

    assert (good.code, good.json) == (0, ["page 0 for me", "page 1 for me"])
    assert "✓ 0.1/cli_fetch#1" in good.err
    assert bad.code == 1
    assert "error AF700" in bad.err


def test_watch_json_is_one_object_a_line() -> None:
    """Events, then the run."""
    lines = [json.loads(line) for line in call("watch", "pages-1", "--json").out.splitlines()]

    assert all("as_of" in line for line in lines)
    assert lines[0]["event"]["kind"] == "RunStarted"
    assert lines[-1]["run"]["status"] == "completed"


def test_watch_can_stop_where_somebody_is_needed() -> None:
    """--no-wait, or a time."""
    asked = call("watch", "question-1", "--no-wait")
    late = call("watch", "question-1", "--timeout", "0.1")

    assert (asked.code, late.code) == (4, 4)
    assert "agentflow approve" in asked.err
    assert "the time is over" in late.err


def test_watch_follows_a_run_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees the end within a moment of the worker's commit."""
    monkeypatch.chdir(tmp_path)
    with process(command("run", flow("cli_slow"), "go", "--id", "w-1"), cwd=tmp_path) as worker:
        until(lambda: "wait" in effects(tmp_path))
        with process(command("watch", "w-1"), cwd=tmp_path) as watcher:
            said(watcher, watcher.stderr, "cli_fetch#1")
            (tmp_path / "go").touch()
            seen = ended(watcher)
        ended(worker)

    assert (seen.code, seen.json) == (0, "page 1, page 2")
    assert "✓ cli_fetch#2" in seen.err


def test_approvals_lists_what_waits() -> None:
    """With the data that the person needs."""
    (item,) = call("approvals", "--json").json["items"]

    assert (item["question"], item["data"]) == ("ship it?", {"page": "page 1"})
    assert item["id"][:8] in call("approvals", "question-1").out
    assert call("approvals", "pages-1").out == "nothing waits for a person\n"
