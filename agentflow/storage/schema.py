"""The tables. What an auditor may rely on is not here but in views.py.

Sizes matter: a run that waits costs its row, its events and four index entries, under 2 KB in
all. So nothing is stored twice: a run's input is event 1, its output the event `output_seq`,
an approval's payload the event that asked. Times are milliseconds, amounts pico-USD, JSON is
text that only Python reads (attributes excepted: lists filter by them).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)

# Partial indexes name the option of SQLite only: for another, SQLAlchemy would load the dialect of
# PostgreSQL (20 ms) just to check the name.
# A dialect for it copies these conditions.
SCHEMA_VERSION = 13

METADATA = MetaData()
Number = BigInteger().with_variant(Integer(), "sqlite")  # only INTEGER can be SQLite's rowid
# Ids are found by the beginning, which is a range of the order of characters in no language.
Name = Text().with_variant(Text(collation="C"), "postgresql")
RUN_PK = Sequence("agentflow_run_pk", metadata=METADATA)  # SQLite has none, and one writer

runs = Table(
    "runs",
    METADATA,
    Column("pk", Number, primary_key=True, autoincrement=False),
    Column("project", Text, nullable=False),
    Column("id", Name, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("wait", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("tags", Text),  # JSON array; None = no tags
    Column("attributes", Text),  # JSON object; None = no attributes
    Column("created_at_ms", Number, nullable=False),
    Column("updated_at_ms", Number, nullable=False),  # time of the last event: none is earlier
    Column("ended_at_ms", Number),
    Column("wake_at_ms", Number),
    Column("next_seq", Number, nullable=False),
    Column("applied_seq", Number, nullable=False),
    Column("segment_seq", Number, nullable=False),  # seq of the last RunContinued, or 1
    Column("epoch", Number, nullable=False),
    Column("owner", Text),
    Column("paused", Integer, nullable=False),
    Column("cancel", Integer, nullable=False),  # a cancel message waits in the inbox
    Column("kill_count", Integer, nullable=False),
    Column("children", Integer, nullable=False),  # number of runs that it started
    Column("ledger_count", Number, nullable=False),  # number of its attempts in the ledger
    Column("last_batch_id", LargeBinary),
    Column("last_answer", Text),  # what that batch was answered
    Column("chain_hash", LargeBinary, nullable=False),  # hash of the last event
    Column("output_seq", Number),  # seq of the terminal event
    Column("parent_pk", Number),
    Column("parent_key", Text),
    Column("on_parent_end", Text),
    # 0 = no budget limits it; else a number that grows whenever one of its budgets has news
    Column("budget", Number, nullable=False, server_default="0"),
    # of the workflow, where it has one: then only workers that have it too may run it
    Column("version", Text, nullable=False, server_default=""),
    Column("priority", Integer, nullable=False, server_default="0"),
    # concurrency key with its project, see queues.py; empty = none
    Column("lane", Text, nullable=False, server_default=""),
    Column("pruned_at_ms", Number),  # since then only this row, its tags and its ledger are left
    UniqueConstraint("project", "id"),
)
Index(
    "runs_wake",
    runs.c.owner,
    runs.c.wake_at_ms,
    sqlite_where=runs.c.wake_at_ms.is_not(None),
)
# Runs that could begin at once: where there are more than workers have room for, whose turn it is.
Index(
    "runs_lanes",
    runs.c.queue,
    runs.c.priority,
    runs.c.lane,
    runs.c.pk,
    sqlite_where=runs.c.owner.is_(None) & (runs.c.wake_at_ms == literal_column("0")),
)
Index(
    "runs_parent",
    runs.c.parent_pk,
    sqlite_where=runs.c.parent_pk.is_not(None),
)

run_tags = Table(
    "run_tags",
    METADATA,
    Column("tag", Text, nullable=False),
    Column("run_pk", Number, nullable=False),
    PrimaryKeyConstraint("tag", "run_pk"),
    sqlite_with_rowid=False,
)

# With a rowid: appends of many runs share a commit, and rows that are clustered by run would
# dirty one page for each of them (measured: 31 us of each append, against 9). A run's rows lie
# apart instead, which reading does not notice (7 us an event, most of it JSON).
events = Table(
    "events",
    METADATA,
    Column("run_pk", Number, nullable=False),
    Column("seq", Number, nullable=False),
    Column("kind", Text, nullable=False),
    Column("time_ms", Number, nullable=False),
    Column("actor", Text),
    Column("key", Text),
    Column("data", Text, nullable=False),
    Column("body", LargeBinary),  # the payload's sealed body where it is small
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("run_pk", "seq"),
)

# With a rowid: bodies are large, and a row of a table without one spills from 1 KB on.
bodies = Table(
    "bodies",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

nodes = Table(
    "nodes",
    METADATA,
    Column("id", LargeBinary, primary_key=True),
    Column("parent", LargeBinary),
    Column("digest", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# Rows stay when they are done (without their payload), so that an id that is sent again after
# a lost reply is still known.
inbox = Table(
    "inbox",
    METADATA,
    Column("row", Number, primary_key=True, autoincrement=True),
    Column("run_pk", Number, nullable=False),
    Column("id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("actor", Text),
    Column("received_at_ms", Number, nullable=False),
    Column("data", Text),  # JSON object; None = empty
    Column("payload", Text),  # JSON array as in events; None = no payload
    Column("body", LargeBinary),
    Column("done", Integer, nullable=False),
    UniqueConstraint("run_pk", "id"),
)
Index(
    "inbox_waiting",
    inbox.c.run_pk,
    sqlite_where=inbox.c.done == 0,
)

approvals = Table(
    "approvals",
    METADATA,
    Column("run_pk", Number, nullable=False),
    Column("id", Name, nullable=False),
    Column("key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("call_digest", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("used", Integer, nullable=False),
    Column("requested_at_ms", Number, nullable=False),
    Column("decided_by", Text),
    Column("reason", Text, nullable=False),
    Column("message_id", Text),  # the message that decided it
    Column("seq", Number, nullable=False),  # the ApprovalRequested, which has the payload
    PrimaryKeyConstraint("run_pk", "id"),
    sqlite_with_rowid=False,
)
Index("approvals_id", approvals.c.id)
Index(
    "approvals_open",
    approvals.c.requested_at_ms,
    sqlite_where=approvals.c.status == "pending",
)

# Narrow, because totals read all of it; what only `explain` shows is in attempt_details.
attempts = Table(
    "attempts",
    METADATA,
    Column("run_pk", Number, nullable=False),
    Column("n", Number, nullable=False),  # counts the run's attempts in the order of writing
    Column("key", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at_ms", Number, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("model", Text, nullable=False),  # as served, else as asked
    Column("status", Text, nullable=False),
    Column("cost_status", Text, nullable=False),
    Column("amount_pico_usd", Number),  # sum of its lines; None = unknown
    Column("input_tokens", Number),  # None = unknown usage
    Column("output_tokens", Number),
    Column("cache_read_tokens", Number),
    Column("cache_saved_pico_usd", Number),  # by the prompt cache; None = unknown
    Column("list_saved_pico_usd", Number),  # against the list at the standard tier
    PrimaryKeyConstraint("run_pk", "n"),
    sqlite_with_rowid=False,
)

attempt_details = Table(
    "attempt_details",
    METADATA,
    Column("run_pk", Number, nullable=False),
    Column("n", Number, nullable=False),
    Column("model_asked", Text, nullable=False),
    Column("model_served", Text),
    Column("request_id", Text),
    Column("response_id", Text),
    Column("tier", Text),
    Column("latency_ms", Number, nullable=False),
    Column("error", Text, nullable=False),
    Column("price_source", Text, nullable=False),
    Column("price_version", Text, nullable=False),
    Column("price_date", Text),
    Column("price_reason", Text, nullable=False),
    Column("usage", Text),  # JSON of the fields of Usage that are not zero; None = unknown
    Column("raw_usage", Text, nullable=False),  # JSON as the provider wrote it
    Column("facts", Text),  # JSON: context, priced_at_ms, actor; None = not kept (version 1)
    PrimaryKeyConstraint("run_pk", "n"),
    sqlite_with_rowid=False,
)

cost_lines = Table(
    "cost_lines",
    METADATA,
    Column("run_pk", Number, nullable=False),
    Column("n", Number, nullable=False),
    Column("line", Integer, nullable=False),
    Column("unit", Text, nullable=False),
    Column("quantity", Number, nullable=False),
    Column("unit_price_usd", Text),  # exact decimal; None = unknown
    Column("amount_pico_usd", Number),
    Column("note", Text, nullable=False),
    Column("list_price_usd", Text),  # exact decimal, at the standard tier; None = unknown
    PrimaryKeyConstraint("run_pk", "n", "line"),
    sqlite_with_rowid=False,
)

watchers = Table(
    "watchers",
    METADATA,
    Column("run_pk", Number, primary_key=True, autoincrement=False),
    Column("until_ms", Number, nullable=False),
)

stream_items = Table(
    "stream_items",
    METADATA,
    Column("row", Number, primary_key=True),
    Column("run_pk", Number, nullable=False),
    Column("at_ms", Number, nullable=False),
    Column("item", Text, nullable=False),  # JSON of one llm.stream.StreamItem
    Index("stream_items_of_run", "run_pk", "row"),
    sqlite_autoincrement=True,  # rows are deleted, and their numbers must never come back
)

# Amounts are pico-USD and tokens. Invariant: spent + reserved <= limit, overruns of providers
# (`over_pico_usd`, `over_tokens`) excepted.
budgets = Table(
    "budgets",
    METADATA,
    Column("pk", Number, primary_key=True, autoincrement=True),
    Column("project", Text, nullable=False),
    Column("scope", Text, nullable=False),  # run | tree | agent | tag | day
    Column("name", Text, nullable=False),
    Column("run_pk", Number),  # of the scopes run and tree; None = the whole project's
    Column("limit_pico_usd", Number),
    Column("limit_tokens", Number),
    Column("spent_pico_usd", Number, nullable=False),
    Column("spent_tokens", Number, nullable=False),
    Column("reserved_pico_usd", Number, nullable=False),
    Column("reserved_tokens", Number, nullable=False),
    Column("doubtful_pico_usd", Number, nullable=False),  # part of spent: bounds, cost unknown
    Column("over_pico_usd", Number, nullable=False),  # billed beyond the bound
    Column("on_exhausted", Text, nullable=False),
    Column("marked_percent", Integer, nullable=False),
    Column("waiters", Integer, nullable=False),  # whether runs may wait in budget_waits
    Column("created_at_ms", Number, nullable=False),
    Column("over_tokens", Number, nullable=False, server_default="0"),  # since version 8
    UniqueConstraint("project", "scope", "name"),
)
Index(
    "budgets_run",
    budgets.c.run_pk,
    sqlite_where=budgets.c.run_pk.is_not(None),
)

# What is held for attempts in flight, and (doubtful) the bounds that count as spent.
reservations = Table(
    "reservations",
    METADATA,
    Column("run_pk", Number, nullable=False),
    Column("key", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("budget_pk", Number, nullable=False),
    Column("amount_pico_usd", Number, nullable=False),
    Column("amount_tokens", Number, nullable=False),
    Column("doubtful", Integer, nullable=False),
    PrimaryKeyConstraint("run_pk", "key", "attempt", "budget_pk"),
    sqlite_with_rowid=False,
)

# Runs with calls that did not fit, and the least that one of those calls needs.
budget_waits = Table(
    "budget_waits",
    METADATA,
    Column("budget_pk", Number, nullable=False),
    Column("run_pk", Number, nullable=False),
    Column("amount_pico_usd", Number, nullable=False),
    Column("amount_tokens", Number, nullable=False),
    PrimaryKeyConstraint("budget_pk", "run_pk"),
    sqlite_with_rowid=False,
)

# One row per worker of a shared database, nothing else: it is written every few seconds, and a
# row that no index points to (but its key) and that fits beside its old self stays in its page.
leases = Table(
    "leases",
    METADATA,
    Column("worker_id", Text, primary_key=True),
    Column("until_ms", Number, nullable=False),
)

# What workers say of themselves, written when they start and when they begin to leave.
workers = Table(
    "workers",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Number, nullable=False),
    Column("started_at_ms", Number, nullable=False),
    Column("agentflow", Text, nullable=False),  # version of the library
    Column("queues", Text, nullable=False),  # JSON array; empty = all
    Column("workflows", Text, nullable=False),  # JSON object: version by name, "" = any
    Column("concurrency", Integer, nullable=False),
    Column("draining", Integer, nullable=False),  # it takes no more runs
)
# The cache across runs: one row for each request that was asked, or is being asked, with it on.
cached_answers = Table(
    "cached_answers",
    METADATA,
    Column("project", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of the request's payload
    Column("model", Text, nullable=False),  # as asked
    Column("claimed_by", Number),  # run that asks the vendor now; None = nobody
    Column("claimed_key", Text),
    Column("claimed_until_ms", Number, nullable=False),  # others wait no longer than this
    Column("paid_by", Text),  # id of the run that paid for the answer; None = no answer yet
    Column("paid_key", Text),
    Column("paid_attempt", Integer),
    Column("answered_at_ms", Number),
    Column("cost_pico_usd", Number),  # None = not known
    Column("payload", Text),  # JSON array as in events
    Column("body", LargeBinary),  # the payload's sealed body where it is small
    PrimaryKeyConstraint("project", "digest"),
)

# Runs whose calls wait for the answer to an equal one.
cache_waits = Table(
    "cache_waits",
    METADATA,
    Column("project", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("run_pk", Number, nullable=False),
    PrimaryKeyConstraint("project", "digest", "run_pk"),
)
Index("cache_waits_run", cache_waits.c.run_pk)

# How many runs may be active at once, and whose turn was the last one.
queue_limits = Table(
    "queue_limits",
    METADATA,
    Column("pk", Number, primary_key=True, autoincrement=True),
    Column("scope", Text, nullable=False),  # queue | workflow
    Column("name", Text, nullable=False),
    Column("concurrency", Integer),  # None = any number
    Column("per_key", Integer),
    Column("source", Text, nullable=False),  # operator | settings | code | turns: nobody set it
    Column("last_lane", Text, nullable=False),
    UniqueConstraint("scope", "name"),
)

# Attempts that no process works on: queued (parcel_pk is NULL), or with a vendor. A row goes when
# its answer is in the inbox of its run.
deferred_calls = Table(
    "deferred_calls",
    METADATA,
    Column("run_pk", Number, nullable=False),
    Column("seq", Number, nullable=False),  # of its ActivityStarted
    Column("key", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("latency", Text, nullable=False),
    Column("queued_at_ms", Number, nullable=False),
    Column("parcel_pk", Number),
    Column("custom_id", Text),
    Column("abandoned", Integer, nullable=False),
    PrimaryKeyConstraint("run_pk", "seq"),
    sqlite_with_rowid=False,
)
Index("deferred_calls_of_parcel", deferred_calls.c.parcel_pk, deferred_calls.c.custom_id)
Index(
    "deferred_calls_queued",
    deferred_calls.c.model,
    deferred_calls.c.latency,
    deferred_calls.c.queued_at_ms,
    sqlite_where=deferred_calls.c.parcel_pk.is_(None),
)

# Calls that went to a vendor together; a row stays, so that nobody takes its batch for a lost one.
parcels = Table(
    "parcels",
    METADATA,
    Column("pk", Number, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("latency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("ref", Text),
    Column("calls", Number, nullable=False),
    Column("created_at_ms", Number, nullable=False),
    Column("sent_at_ms", Number, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("looks", Integer, nullable=False),
    Column("stopped", Integer, nullable=False),
    Column("strangers", Text),  # JSON array of references that are not its own
    Column("next_at_ms", Number),  # when somebody must see to it; None = it is done
    Column("owner", Text),
    Column("lease_until_ms", Number, nullable=False),
    UniqueConstraint("id"),
)
Index(
    "parcels_next",
    parcels.c.next_at_ms,
    sqlite_where=parcels.c.next_at_ms.is_not(None),
)
Index("parcels_ref", parcels.c.ref)

schedules = Table(
    "schedules",
    METADATA,
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("timetable", Text, nullable=False),  # JSON of timetable.Timetable
    Column("overlap", Text, nullable=False),
    Column("catch_up_ms", Number, nullable=False),
    Column("payload", Text, nullable=False),  # as in the inbox: the input of each run
    Column("body", LargeBinary),
    Column("terms", Text, nullable=False),  # JSON: queue, priority, key, tags, limits
    Column("paused", Integer, nullable=False),
    Column("next_due_ms", Number),
    Column("last_due_ms", Number),
    Column("last_run_id", Text),
    Column("buffered_due_ms", Number),
    Column("started", Number, nullable=False),
    Column("skipped", Number, nullable=False),
    Column("missed", Number, nullable=False),
    Column("created_at_ms", Number, nullable=False),
    Column("version", Number, nullable=False),  # whoever changes it has compared it
    PrimaryKeyConstraint("project", "name"),
)

# What was let through in the last minute is in one column: it is always read and written whole.
rate_limits = Table(
    "rate_limits",
    METADATA,
    Column("pk", Number, primary_key=True, autoincrement=True),
    Column("model", Text, nullable=False),  # provider:name, or provider:*
    Column("key", Text, nullable=False),  # concurrency key; empty = all together, * = each
    Column("requests", Number),  # a minute; None = any number
    Column("tokens", Number),
    Column("source", Text, nullable=False),  # operator | settings | each
    Column("state", Text, nullable=False),  # JSON of ledger.pace.Pace; empty = fresh
    UniqueConstraint("model", "key"),
)

schema_table = Table(
    "agentflow_schema",
    METADATA,
    Column("version", Integer, nullable=False),
    Column("applied_at_ms", Number, nullable=False),
    Column("oldest_code", Integer),  # the floor, see migrations; None = the version itself
)
