"""The text that Prometheus reads."""

from __future__ import annotations

from agentflow.worker.counts import APPEND_SECONDS, Counts
from agentflow.worker.metrics import Readings, exposition, family

NOW = Readings(
    worker_id="1-a", active=2, warm=1, concurrency=10, is_ready=True, lease_age_seconds=0.12345,
    lapses=1, due={"default": 3, 'odd "one"\n': 1},
)  # fmt: skip


def samples(text: str) -> dict[str, str]:
    """Return the values by name and labels."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines)


def test_every_metric_has_a_type_and_every_value_is_a_number() -> None:
    """One HELP and one TYPE for each family, before its samples."""
    text = exposition(Counts(), NOW)

    assert text.endswith("\n")
    assert "\n\n" not in text
    known: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in known
            assert kind in {"gauge", "counter", "histogram"}
            assert name.endswith("_total") == (kind == "counter")
            known.add(name)
        elif not line.startswith("#"):
            name = line.split("{")[0].split(" ")[0]
            assert name in known or name.rsplit("_", 1)[0] in known
            float(line.rsplit(" ", 1)[1])


def test_values_are_what_was_counted() -> None:
    """Money is exact decimal text; the histogram is cumulative."""
    counts = Counts()
    counts.spent_pico_usd["openai:gpt"] += 1_250_000_000_001
    counts.fenced = 4
    counts.appends[0], counts.appends[-1], counts.append_seconds = 2, 1, 9.5

    found = samples(exposition(counts, NOW))

    assert found['agentflow_spend_usd_total{model="openai:gpt"}'] == "1.250000000001"
    assert found["agentflow_fenced_appends_total"] == "4"
    assert found["agentflow_lease_age_seconds"] == "0.123"
    assert found['agentflow_runs{state="active"}'] == "2"
    assert found['agentflow_append_seconds_bucket{le="0.001"}'] == "2"
    assert found[f'agentflow_append_seconds_bucket{{le="{APPEND_SECONDS[-1]}"}}'] == "2"
    assert found['agentflow_append_seconds_bucket{le="+Inf"}'] == "3"
    assert found["agentflow_append_seconds_sum"] == "9.5"
    assert found["agentflow_append_seconds_count"] == "3"


def test_labels_are_escaped() -> None:
    """A queue's name may hold anything."""
    found = samples(exposition(Counts(), NOW))

    assert found['agentflow_queue_depth{queue="odd \\"one\\"\\n"}'] == "1"
    assert list(family("x", "gauge", "X.", [])) == []
