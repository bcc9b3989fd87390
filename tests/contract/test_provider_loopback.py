"""The loopback server as a process of its own, as demos and crash tests use it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentflow.errors import ProviderError
from tests.contract.provider_dialects import DIALECTS, ask, complete

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = {
    "rules": [
        {"match": "plan", "turns": [{"calls": [["search", {"query": "x"}]]}, {"text": "Planned."}]}
    ],
    "turns": [{"text": "Hello.", "faults": [{"status": 500}, {"disconnect": "before"}, None]}],
}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server process; it ends when its standard input does."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT), encoding="utf-8")
    command = [sys.executable, "-m", "agentflow.testing.loopback", "--with-stdin"]
    with subprocess.Popen(
        [*command, "--script", str(script)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def counted(url: str, query: str = "") -> Any:
    """Return what the server counted."""
    with urllib.request.urlopen(f"{url}/__requests{query}", timeout=5) as answer:  # noqa: S310
        return json.load(answer)


def test_a_json_script_drives_every_format_and_everything_is_counted(url: str) -> None:
    """Rules, turns and faults by repetition; a killed request counts like others."""
    for dialect in DIALECTS:
        for attempt in (1, 2):
            with pytest.raises(ProviderError):
                complete(dialect, url, ask(dialect), idempotency_key=dialect.name, attempt=attempt)
        hello = complete(dialect, url, ask(dialect), idempotency_key=dialect.name, attempt=3)
        planned = complete(dialect, url, ask(dialect, instructions="Make a plan."))

        assert hello.message.text == "Hello."
        assert planned.message.tool_calls[0].name == "search"
        mine = counted(url, f"?key={dialect.name}")
        assert [r["outcome"] for r in mine["requests"]] == [
            "fault 500",
            "fault disconnect",
            "answered",
        ]
    assert counted(url)["count"] == 12
