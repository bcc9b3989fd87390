"""The books at a shell: waste and savings, adjustments, audit, export, reconciliation."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow.errors import UsageError
from agentflow.testing.loopback import Answer, LoopbackServer
from tests.acceptance.cli_driver import Done, call, flow
from tests.unit.ledger.reports import openai_cost, openai_page, openai_usage

MODEL = "openai-chat:gpt-6-sol"  # per million: input 2, cached 0.2, output 10 USD
TURNS = [
    Answer(calls=(("cli_search", {"query": "crash"}),), input_tokens=1_000, output_tokens=100),
    Answer(text="Write it down.", input_tokens=2_000, output_tokens=50, cached_tokens=1_000),
]
FIRST = Decimal("0.003")  # 1000 x 2 + 100 x 10
SECOND = Decimal("0.0027")  # 1000 x 2 + 1000 x 0.2 + 50 x 10
TOOL = Decimal("0.005")
RUN = FIRST + SECOND + TOOL


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose database has one run of an agent."""
    monkeypatch.chdir(tmp_path)
    with LoopbackServer(TURNS) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
        asked = ("cli_ask_model", MODEL, "What to do?")
        done = call("run", flow(asked[0]), *asked[1:], "--id", "agent-1", "--tag", "night")
    assert done.json == "Write it down."
    return tmp_path


def total(*words: str) -> dict[str, Any]:
    """Return the total that `cost` shows."""
    found: dict[str, Any] = call("cost", *words, "--json").json
    return found


def test_cost_says_what_the_prompt_cache_saved() -> None:
    """1000 cached tokens at 0.2 instead of 2 USD per million."""
    found = total("agent-1")

    assert Decimal(found["total"]["cost_usd"]) == RUN
    assert found["savings"]["prompt_cache_usd"] == "0.0018"
    assert found["savings"]["unknown"] == 0
    assert found["waste"]["retries"] == 0
    assert "prompt cache saved $0.0018" in call("cost", "agent-1").out


def test_a_tree_tells_own_from_children() -> None:
    """A run without children: all of it is its own."""
    done = call("cost", "agent-1", "--tree")

    assert f"own ${RUN}, child runs $0" in done.out.splitlines()
    assert Decimal(total("agent-1", "--tree")["own"]["cost_usd"]) == RUN


def test_an_adjustment_is_in_the_total_and_named_apart() -> None:
    """A credit; booked twice under its id it is booked once."""
    words = ("adjust", "agent-1", "--usd", "-0.001", "--reason", "credit note 7", "--id", "c7")
    done, again = call(*words), call(*words, "--json")

    assert done.out == (
        f"booked -$0.001; run agent-1 is at ${RUN - Decimal('0.001')} "
        "(priced 3 of 3 calls; 1 adjustment of -$0.001)\n"
    )
    assert again.json["booked"] is False
    assert Decimal(again.json["total"]["cost_usd"]) == RUN - Decimal("0.001")
    explained = call("explain", "agent-1").out
    assert "the run as a whole  adjustment manual" in explained
    assert "= -$0.001  credit note 7" in explained
    by_day = total("--by", "day")["items"]
    assert [one["adjustments"] for one in by_day] == [1]
    assert call("verify", "agent-1").code == 0


def test_an_adjustment_may_be_about_a_call() -> None:
    """Then it has its model, and is in the call's sum."""
    key = "0/llm_call#1"
    done = call("adjust", "agent-1", "--usd", "0.5", "--reason", "invoice", "--key", key)

    assert done.code == 0
    by_step = {one["group"]: one["cost_usd"] for one in total("agent-1")["items"]}
    by_model = {one["group"]: one["adjusted_usd"] for one in total("--by", "model")["items"]}
    assert Decimal(by_step[key]) == FIRST + Decimal("0.5")
    assert by_model[MODEL] == "0.5"


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("agent-1", "--usd", "0", "--reason", "x"), "AF200", 2),
        (("agent-1", "--usd", "1", "--reason", " "), "AF200", 2),
        (("agent-1", "--usd", "much", "--reason", "x"), "AF200", 2),
        (("agent-1", "--usd", "1E-13", "--reason", "x"), "AF200", 2),
        (("nobody-1", "--usd", "1", "--reason", "x"), "AF300", 3),
        (("agent-1", "--usd", "1", "--reason", "x", "--key", "k"), "AF300", 3),
    ],
)
def test_adjust_says_what_is_wrong(words: tuple[str, ...], code: str, exit_code: int) -> None:
    """And books nothing."""
    done = call("adjust", *words, "--json")

    assert (done.code, done.error["code"]) == (exit_code, code)
    assert total()["total"]["adjustments"] == 0


def altered(statement: str) -> None:
    """Alter the database behind everybody's back."""
    with closing(sqlite3.connect("agentflow.db")) as connection, connection:
        assert connection.execute(statement).rowcount


def test_the_audit_derives_every_figure_again() -> None:
    """Two model calls read again and priced again; the tool's line; an adjustment."""
    call("adjust", "agent-1", "--usd", "-0.001", "--reason", "credit")
    one, every = call("cost", "agent-1", "--audit"), call("cost", "--audit", "--all", "--json")

    assert one.code == every.code == 0
    assert one.out == (
        "4 entries with 7 lines: usage read again 2, priced again 2, found in the history 2, "
        "0 differences\n"
    )
    assert every.json["items"] == []


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE cost_lines SET amount_pico_usd = 1 WHERE unit = 'cache_read'", "amount of cache"),
        ("UPDATE cost_lines SET unit_price_usd = '1' WHERE unit = 'tool'", "amount of tool"),
        ("UPDATE attempts SET amount_pico_usd = 1 WHERE n = 1", "amount of the attempt"),
        ("UPDATE attempts SET output_tokens = 1 WHERE n = 1", "count of output_tokens"),
        (
            "UPDATE attempt_details SET raw_usage = replace(raw_usage, '100', '900')",
            "usage's output_tokens",
        ),
        ("UPDATE attempt_details SET tier = 'flex' WHERE n = 1", "at today's price"),
        ("DELETE FROM attempts WHERE n = 2", "number of the entry"),
        ("DELETE FROM attempts WHERE n = 3", "entry of a recorded answer"),
        ("DELETE FROM attempts", "entry of a recorded answer"),
        (
            "UPDATE attempts SET amount_pico_usd = 0, cost_status = 'not_billed' WHERE n = 1",
            "the cost, against the history,",
        ),
    ],
)
def test_the_audit_finds_what_was_altered(statement: str, what: str) -> None:
    """Exit code 1, and each difference with both figures."""
    altered(statement)
    done = call("cost", "agent-1", "--audit", "--json")

    assert done.code == 1
    assert any(what in one["what"] for one in done.json["items"])
    assert "differs  agent-1" in call("cost", "agent-1", "--audit").out


@pytest.mark.parametrize(
    "words",
    [
        ("--tree",), ("--all",), ("--audit",), ("agent-1", "--audit", "--all"), ("--output", "x"),
        ("--audit", "--all", "--export", "csv"), ("--export", "csv", "--by", "day"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_together_are_refused(words: tuple[str, ...]) -> None:
    """Before anything is read."""
    assert call("cost", *words, "--json").error["code"] == "AF200"


def rows(done: Done) -> list[dict[str, str]]:
    """Return the rows of CSV on stdout."""
    return list(csv.DictReader(io.StringIO(done.out)))


def test_csv_and_jsonl_have_every_line() -> None:
    """Their sum is the total, exactly; unknown is empty."""
    table, lines = rows(call("cost", "--export", "csv")), call("cost", "--export", "jsonl")
    values = [json.loads(line) for line in lines.out.splitlines()]

    assert [row["unit"] for row in table] == ["input", "output", "tool", "input", "cache_read",
                                              "output"]  # fmt: skip
    assert sum(Decimal(row["cost_usd"]) for row in table) == RUN
    assert [value["cost_usd"] for value in values] == [row["cost_usd"] for row in table]
    assert table[0]["unit_price_usd"] == "0.000002"
    assert (table[2]["list_price_usd"], values[2]["list_price_usd"]) == ("", None)
    assert values[0]["tags"] == ["night"]


def test_focus_has_its_columns_and_its_sum(here: Path) -> None:
    """Prices per million tokens, the calendar month as the billing period, tags as JSON."""
    call("adjust", "agent-1", "--usd", "-0.001", "--reason", "credit")
    done = call("cost", "--export", "focus", "-o", "focus.csv")
    table = rows(Done(0, (here / "focus.csv").read_text(encoding="utf-8"), ""))

    assert done.out == ""
    assert "7 lines written to focus.csv" in done.err
    assert sum(Decimal(row["BilledCost"]) for row in table) == RUN - Decimal("0.001")
    first = table[0]
    assert (first["ConsumedQuantity"], first["ConsumedUnit"]) == ("1000", "Tokens")
    assert (first["PricingQuantity"], first["PricingUnit"]) == ("0.001", "1000000 Tokens")
    assert (first["ListUnitPrice"], first["ContractedUnitPrice"]) == ("2", "2")
    assert (first["ServiceName"], first["ProviderName"]) == ("OpenAI API", "OpenAI")
    assert first["SkuId"] == f"{MODEL}/input"
    assert first["BillingPeriodStart"][8:] == "01T00:00:00Z"
    assert json.loads(first["Tags"])["night"] is True
    assert json.loads(first["Tags"])["agentflow:run"] == "agent-1"
    assert [row["ChargeCategory"] for row in table] == ["Usage"] * 6 + ["Adjustment"]


def test_focus_leaves_out_what_has_no_amount() -> None:
    """And says how much; it has no place for an unknown cost."""
    altered("UPDATE cost_lines SET amount_pico_usd = NULL, unit_price_usd = NULL WHERE n = 2")
    done = call("cost", "--export", "focus")

    assert len(rows(done)) == 5
    assert "1 lines left out" in done.err


def test_a_file_that_cannot_be_written_is_named() -> None:
    """A folder that is not there."""
    done = call("cost", "--export", "csv", "-o", "no/such.csv", "--json")

    assert "no/such.csv cannot be written" in done.error["message"]


@pytest.fixture
def reports(here: Path) -> tuple[str, str]:
    """The provider's usage, which agrees, and its costs, which are 2 cents more."""
    today = datetime.now(tz=UTC).date()  # noqa: TID251 -- the run has just been
    usage = openai_page({
        today: [openai_usage("gpt-6-sol-2026-08-01", 3000, 150, cached=1000, requests=2)]
    })  # fmt: skip
    billed = str(FIRST + SECOND + Decimal("0.02"))
    costs = openai_page({today: [openai_cost("gpt-6-sol, input", billed)]})
    (here / "usage.json").write_text(json.dumps(usage))
    (here / "costs.json").write_text(json.dumps(costs))
    return "usage.json", "costs.json"


def test_reconcile_compares_and_accepts_once(reports: tuple[str, str]) -> None:
    """Tokens agree, money differs; accepted it is an adjustment, and agrees from then on."""
    words = ("reconcile", *reports, "--provider", "openai")
    before = call(*words, "--json")
    accepted = call(*words, "--accept", "--reason", "invoice 11/2026")
    after = call(*words)

    assert before.code == 1
    (one,) = before.json["items"]
    assert (one["what"], one["model"], one["difference_usd"]) == ("money", "gpt-6-sol", "0.02")
    assert "the same tokens at another price" in one["causes"][0]
    assert accepted.code == after.code == 0
    assert "booked $0.02 in 1 entries of run reconcile-openai-" in accepted.out
    assert "0 differences of money" in after.out
    whole = total()["total"]
    assert (whole["adjustments"], Decimal(whole["cost_usd"])) == (1, RUN + Decimal("0.02"))
    (run,) = call("list", "--workflow", "agentflow.reconcile", "--json").json["items"]
    assert run["status"] == "completed"
    shown = call("show", run["id"], "--json").json["run"]
    assert shown["result"]["reason"] == "invoice 11/2026"
    assert call("verify", run["id"]).code == 0
    assert call("cost", "--audit", "--all").code == 0


def test_accepting_the_same_report_again_books_nothing(reports: tuple[str, str]) -> None:
    """Even where the first acceptance was lost to its caller."""
    words = ("reconcile", *reports, "--provider", "openai", "--accept", "--json")
    first = call(*words).json["booked"]
    altered("UPDATE attempts SET model = '' WHERE kind = 'adjustment'")
    altered("UPDATE attempt_details SET model_asked = '' WHERE price_version = '' AND n = 1")
    again = call(*words).json["booked"]

    assert (first["is_new"], again["is_new"]) == (True, False)
    assert first["run_id"] == again["run_id"]
    assert total()["total"]["adjustments"] == 1


def test_only_money_can_be_accepted(reports: tuple[str, str]) -> None:
    """Tokens alone are no amount."""
    done = call("reconcile", reports[0], "--provider", "openai", "--accept", "--json")

    assert (done.code, done.error["code"]) == (2, "AF200")


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("{", (), "AF221"),
        ("[]", (), "AF220"),
        (json.dumps({"data": [], "has_more": False}), (), "AF220"),
        (None, (), "AF220"),
    ],
)
def test_a_report_that_cannot_be_used_is_refused(
    here: Path, text: str | None, words: tuple[str, ...], code: str
) -> None:
    """With a code of its own."""
    if text is not None:
        (here / "report.json").write_text(text)
    done = call("reconcile", "report.json", "--provider", "openai", *words, "--json")

    assert (done.code, done.error["code"]) == (2, code)


def test_another_organisations_report_is_refused(here: Path) -> None:
    """No model in common: nothing is compared, and nothing accepted."""
    today = datetime.now(tz=UTC).date()  # noqa: TID251 -- the run has just been
    page = openai_page({today: [openai_usage("gpt-4o", 5, 1)]})
    (here / "theirs.json").write_text(json.dumps(page))
    done = call("reconcile", "theirs.json", "--provider", "openai", "--json")

    assert (done.code, done.error["code"]) == (2, "AF222")
    assert call("reconcile", "theirs.json", "--provider", "openai", "--force").code == 1


async def test_a_float_is_no_amount(here: Path) -> None:
    """In Python, too: 0.1 is not a tenth."""
    async with agentflow.connect(f"sqlite:///{here}/agentflow.db") as client:
        for amount in (0.1, True):
            with pytest.raises(UsageError, match="is not exact"):
                await client.adjust("agent-1", amount, reason="x")  # type: ignore[arg-type]
        assert await client.adjust("agent-1", "0.1", reason="x", id="1")
        assert not await client.adjust("agent-1", "0.1", reason="x", id="1")
        cost = await (await client.get("agent-1")).cost()

    assert cost.usd == RUN + Decimal("0.1")
    assert "1 adjustment of $0.1" in cost._repr_html_()
