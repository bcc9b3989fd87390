"""`agentflow reconcile --live`: the vendor's own reports, page by page, with an admin key."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import agentflow
from tests.acceptance.cli_driver import call

KEY = "sk-admin-0123456789abcdef"
DAYS = [1_793_491_200 + 86_400 * number for number in range(3)]  # from 2026-11-01, UTC
Asked = tuple[str, dict[str, list[str]], dict[str, str]]


def iso(seconds: int) -> str:
    """Return a time as Anthropic writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def bucket(path: str, day: int) -> dict[str, Any]:
    """Return what the vendor says of a day: as documented, three tokens and nothing billed."""
    if path.startswith("/v1/organization/"):
        result: dict[str, Any] = {"object": "organization.costs.result", "line_item": None,
                                  "amount": {"value": 0.0, "currency": "usd"}}  # fmt: skip
        if "usage" in path:
            result = {"object": "organization.usage.completions.result", "model": "gpt-6-sol",
                      "input_tokens": 2, "output_tokens": 1, "num_model_requests": 1}  # fmt: skip
        return {"object": "bucket", "start_time": day, "end_time": day + 86_400,
                "results": [result]}  # fmt: skip
    result = {"amount": "0", "currency": "USD", "description": None}
    if "usage" in path:
        result = {"model": "claude-sonnet-5-5", "uncached_input_tokens": 2, "output_tokens": 1}
    return {"starting_at": iso(day), "ending_at": iso(day + 86_400), "results": [result]}


@contextmanager
def vendor(status: int = 200, *, endless: bool = False) -> Iterator[tuple[str, list[Asked]]]:
    """Yield the address of an admin API with a page a day, and what it was asked."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
            """Say nothing."""

        def do_GET(self) -> None:
            """Answer one page."""
            where = urlsplit(self.path)
            query = parse_qs(where.query)
            asked.append((where.path, query, {k.lower(): v for k, v in self.headers.items()}))
            number = int(query.get("page", ["0"])[0])
            more = endless or number + 1 < len(DAYS)
            page = {"object": "page", "data": [bucket(where.path, DAYS[number % len(DAYS)])],
                    "has_more": more, "next_page": str(number + 1) if more else None}  # fmt: skip
            body = json.dumps(page).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger without a call, in the current directory."""
    monkeypatch.chdir(tmp_path)

    async def make() -> None:
        async with agentflow.connect("sqlite:///agentflow.db"):
            pass

    asyncio.run(make())


WORDS = ("reconcile", "--live", "--since", "2026-11-01", "--until", "2026-11-03", "--json")


@pytest.mark.parametrize(
    ("name", "header", "sent", "first"),
    [
        ("openai", "authorization", f"Bearer {KEY}", ("start_time", str(DAYS[0]))),
        ("anthropic", "x-api-key", KEY, ("starting_at", "2026-11-01T00:00:00Z")),
    ],
)
def test_all_pages_of_both_reports_are_fetched(
    name: str, header: str, sent: str, first: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Then they are compared like files; the key is in the header, and nowhere else."""
    caplog.set_level(logging.DEBUG)
    with vendor() as (url, asked):
        monkeypatch.setenv(f"{name.upper()}_ADMIN_KEY", KEY)
        monkeypatch.setenv("AGENTFLOW_REPORTS_URL", url)
        done = call(*WORDS, "--provider", name)

    assert done.code == 1, done.err  # the ledger has no call: three days differ
    assert (done.json["from"], done.json["to"]) == ("2026-11-01", "2026-11-03")
    assert [one["counts"]["input_tokens"]["reported"] for one in done.json["items"]] == [2, 2, 2]
    assert len(asked) == 2 * len(DAYS)
    assert {headers[header] for _, _, headers in asked} == {sent}
    assert [query.get("page") for _, query, _ in asked[:3]] == [None, ["1"], ["2"]]
    assert asked[0][1][first[0]] == [first[1]]
    assert asked[0][1]["group_by[]"][:2] == ["model", "service_tier"]
    assert KEY not in done.out + done.err + caplog.text


@pytest.mark.parametrize(
    ("status", "endless", "says"),
    [
        (401, False, "refused the key (status 401)"),
        (500, False, "answered with status 500"),
        (200, True, "has no end"),
    ],
)
def test_what_the_vendor_does_not_give(
    status: int, says: str, monkeypatch: pytest.MonkeyPatch, *, endless: bool
) -> None:
    """One line and a hint, without the key."""
    with vendor(status, endless=endless) as (url, _):
        monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
        monkeypatch.setenv("AGENTFLOW_REPORTS_URL", url)
        done = call(*WORDS, "--provider", "openai")

    assert (done.code, done.error["code"]) == (2, "AF220")
    assert says in done.error["message"]
    assert KEY not in done.out + done.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--live", "--since", "2026-11-01"), "AF207", "OPENAI_ADMIN_KEY is not set"),
        (("--live",), "AF200", "--live needs the first day"),
        (("--live", "--since", "2026-11-02", "--until", "2026-11-01"), "AF200", "no day from"),
        (("--live", "a.json", "--since", "2026-11-01"), "AF200", "name no file"),
        ((), "AF200", "there is no report"),
        (("a.json", "--since", "2026-11-01"), "AF200", "belong to --live"),
    ],
)
def test_words_that_mean_nothing_together(
    words: tuple[str, ...], code: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched."""
    monkeypatch.delenv("OPENAI_ADMIN_KEY", raising=False)
    done = call("reconcile", *words, "--provider", "openai", "--json")

    assert (done.code, done.error["code"]) == (2, code)
    assert says in done.error["message"]
