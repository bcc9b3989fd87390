"""Public views: what auditors may rely on, in any SQL tool. Tables may change, these do not.

* ``agentflow_runs``: one row per run: project, run_id, workflow, status, wait, error, queue,
  tags, parent_run_id, parent_key, created_at, updated_at, ended_at (ISO 8601, UTC), events.
* ``agentflow_events``: project, run_id, seq, kind, time, actor, key, data (JSON), hash (hex).
* ``agentflow_attempts``: project, run_id, n, key, attempt, time, kind, name, model_asked,
  model_served, status, cost_status, cost_usd, input_tokens, output_tokens,
  cache_read_tokens, request_id, response_id, tier, latency_ms, error, price_source,
  price_version, price_date, price_reason.
* ``agentflow_cost_lines``: project, run_id, n, key, attempt, line, unit, quantity,
  unit_price_usd, cost_usd, note, list_price_usd.
* ``agentflow_cost_by_run``, ``agentflow_cost_by_day``: project, run_id or day, cost_usd,
  attempts, known_attempts (how many of them have their full price), adjustments (how many
  amounts that somebody booked are in cost_usd).

An attempt of the kind ``adjustment`` is such an amount: name is its source, price_reason why.

Every ``…_usd`` is exact decimal text, made with integer arithmetic; NULL is unknown, not zero.
"""

from __future__ import annotations

from collections.abc import Callable

from agentflow.dataclass import dataclass

# ruff: noqa: S608 -- fixed text, no value from outside

VIEWS = (
    "agentflow_runs",
    "agentflow_events",
    "agentflow_attempts",
    "agentflow_cost_lines",
    "agentflow_cost_by_run",
    "agentflow_cost_by_day",
)
MICRO = 1_000_000  # pico-USD in a micro-USD, micro-USD in a dollar


@dataclass(frozen=True, slots=True)
class Speech:
    """How one kind of database says what the views need; each takes and gives SQL text.

    Attributes:
        time: Milliseconds as ISO 8601 with milliseconds, UTC.
        day: Milliseconds as the UTC day.
        hex: Bytes as lower-case hexadecimal text.
        dollars: Exact decimal text, from a sign, whole micro-USD, and the rest in pico-USD.
        whole: A sum as an integer.
    """

    time: Callable[[str], str]
    day: Callable[[str], str]
    hex: Callable[[str], str]
    dollars: Callable[[str, str, str], str]
    whole: Callable[[str], str]


SQLITE = Speech(
    time=lambda ms: (
        f"strftime('%Y-%m-%dT%H:%M:%S', {ms} / 1000, 'unixepoch') || printf('.%03dZ', {ms} % 1000)"
    ),
    day=lambda ms: f"date({ms} / 1000, 'unixepoch')",
    hex=lambda value: f"lower(hex({value}))",
    dollars=lambda sign, micro, rest: (
        f"printf('{sign}%d.%06d%06d', ({micro}) / {MICRO}, ({micro}) % {MICRO}, ({rest}))"
    ),
    whole=lambda amount: amount,
)
_STAMP = "to_timestamp({ms} / 1000) AT TIME ZONE 'UTC'"
POSTGRES = Speech(
    time=lambda ms: (
        f"to_char({_STAMP.format(ms=ms)}, 'YYYY-MM-DD\"T\"HH24:MI:SS') "
        f"|| '.' || lpad(({ms} % 1000)::text, 3, '0') || 'Z'"
    ),
    day=lambda ms: f"to_char({_STAMP.format(ms=ms)}, 'YYYY-MM-DD')",
    hex=lambda value: f"encode({value}, 'hex')",
    dollars=lambda sign, micro, rest: (
        f"'{sign}' || (({micro}) / {MICRO})::text || '.' "
        f"|| lpad((({micro}) % {MICRO})::text, 6, '0') || lpad(({rest})::text, 6, '0')"
    ),
    whole=lambda amount: f"({amount})::bigint",
)


def sqlite_view(name: str) -> str:
    """Return the CREATE VIEW statement of *name* for SQLite."""
    return f"CREATE VIEW {name} AS {_views(SQLITE)[name]}"


def postgres_view(name: str) -> str:
    """Return the CREATE VIEW statement of *name* for PostgreSQL."""
    return f"CREATE VIEW {name} AS {_views(POSTGRES)[name]}"


def _floor(column: str) -> tuple[str, str]:
    """*column* in pico-USD as whole micro-USD, rounded down, and the rest (never negative)."""
    rest = f"((({column}) % {MICRO} + {MICRO}) % {MICRO})"
    return f"((({column}) - {rest}) / {MICRO})", rest


def _usd(speech: Speech, micro: str, rest: str) -> str:
    """Exact dollars from micro-USD and a rest in pico-USD, both integers."""
    positive = speech.dollars("", micro, rest)
    # -1.25 is stored as floor -2 and rest 0.75: turn the sign around.
    up = f"(-({micro}) - (CASE WHEN ({rest}) > 0 THEN 1 ELSE 0 END))"
    turned = f"(({MICRO} - ({rest})) % {MICRO})"
    negative = speech.dollars("-", up, turned)
    return f"CASE WHEN ({micro}) < 0 THEN {negative} ELSE {positive} END"


def _amount(speech: Speech, column: str) -> str:
    """One amount as dollars; NULL stays NULL."""
    return f"CASE WHEN {column} IS NOT NULL THEN {_usd(speech, *_floor(column))} END"


def _total(speech: Speech, group: str, label: str) -> str:
    """Sums by group: halves are summed apart, so that no sum leaves 64 bits."""
    micro, rest = _floor("a.amount_pico_usd")
    known = "a.cost_status IN ('priced', 'not_billed', 'cached')"
    real = "a.kind <> 'adjustment'"
    return (
        f"SELECT project, {label}, CASE WHEN anything THEN "
        f"{_usd(speech, f'micro + rest / {MICRO}', f'rest % {MICRO}')} END AS cost_usd, "
        "attempts, known_attempts, adjustments FROM ("
        f"SELECT r.project AS project, {group} AS {label}, "
        f"{speech.whole(f'sum({micro})')} AS micro, {speech.whole(f'sum({rest})')} AS rest, "
        "count(a.amount_pico_usd) > 0 AS anything, "
        f"count(*) FILTER (WHERE {real}) AS attempts, "
        f"count(*) FILTER (WHERE {known}) AS known_attempts, "
        f"count(*) FILTER (WHERE NOT ({real})) AS adjustments "
        f"FROM attempts a JOIN runs r ON r.pk = a.run_pk GROUP BY r.project, {group}) AS totals"
    )


def _views(speech: Speech) -> dict[str, str]:
    time = speech.time
    return {
        "agentflow_runs": (
            "SELECT r.project, r.id AS run_id, r.workflow, r.status, r.wait, r.error, r.queue, "
            "r.tags, p.id AS parent_run_id, r.parent_key, "
            f"{time('r.created_at_ms')} AS created_at, {time('r.updated_at_ms')} AS updated_at, "
            f"{time('r.ended_at_ms')} AS ended_at, r.next_seq - 1 AS events "
            "FROM runs r LEFT JOIN runs p ON p.pk = r.parent_pk"
        ),
        "agentflow_events": (
            f"SELECT r.project, r.id AS run_id, e.seq, e.kind, {time('e.time_ms')} AS time, "
            f"e.actor, e.key, e.data, {speech.hex('e.hash')} AS hash "
            "FROM events e JOIN runs r ON r.pk = e.run_pk"
        ),
        "agentflow_attempts": (
            "SELECT r.project, r.id AS run_id, a.n, a.key, a.attempt, "
            f"{time('a.at_ms')} AS time, a.kind, a.name, d.model_asked, d.model_served, a.status, "
            f"a.cost_status, {_amount(speech, 'a.amount_pico_usd')} AS cost_usd, a.input_tokens, "
            "a.output_tokens, a.cache_read_tokens, d.request_id, d.response_id, d.tier, "
            "d.latency_ms, d.error, d.price_source, d.price_version, d.price_date, d.price_reason "
            "FROM attempts a JOIN runs r ON r.pk = a.run_pk "
            "JOIN attempt_details d ON d.run_pk = a.run_pk AND d.n = a.n"
        ),
        "agentflow_cost_lines": (
            "SELECT r.project, r.id AS run_id, c.n, a.key, a.attempt, c.line, c.unit, c.quantity, "
            f"c.unit_price_usd, {_amount(speech, 'c.amount_pico_usd')} AS cost_usd, c.note, "
            "c.list_price_usd "
            "FROM cost_lines c JOIN attempts a ON a.run_pk = c.run_pk AND a.n = c.n "
            "JOIN runs r ON r.pk = c.run_pk"
        ),
        "agentflow_cost_by_run": _total(speech, "r.id", "run_id"),
        "agentflow_cost_by_day": _total(speech, speech.day("a.at_ms"), "day"),
    }
