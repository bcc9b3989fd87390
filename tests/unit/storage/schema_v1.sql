-- What version 1 made on SQLite; never edited.
CREATE TABLE runs (
	pk INTEGER NOT NULL,
	project TEXT NOT NULL,
	id TEXT NOT NULL,
	workflow TEXT NOT NULL,
	status TEXT NOT NULL,
	wait TEXT NOT NULL,
	error TEXT NOT NULL,
	queue TEXT NOT NULL,
	tags TEXT,
	attributes TEXT,
	created_at_ms INTEGER NOT NULL,
	updated_at_ms INTEGER NOT NULL,
	ended_at_ms INTEGER,
	wake_at_ms INTEGER,
	next_seq INTEGER NOT NULL,
	applied_seq INTEGER NOT NULL,
	segment_seq INTEGER NOT NULL,
	epoch INTEGER NOT NULL,
	owner TEXT,
	paused INTEGER NOT NULL,
	cancel INTEGER NOT NULL,
	kill_count INTEGER NOT NULL,
	children INTEGER NOT NULL,
	ledger_count INTEGER NOT NULL,
	last_batch_id BLOB,
	last_answer TEXT,
	chain_hash BLOB NOT NULL,
	output_seq INTEGER,
	parent_pk INTEGER,
	parent_key TEXT,
	on_parent_end TEXT,
	PRIMARY KEY (pk),
	UNIQUE (project, id)
);

CREATE INDEX runs_wake ON runs (owner, wake_at_ms) WHERE wake_at_ms IS NOT NULL;

CREATE INDEX runs_parent ON runs (parent_pk) WHERE parent_pk IS NOT NULL;

CREATE TABLE run_tags (
	tag TEXT NOT NULL,
	run_pk INTEGER NOT NULL,
	PRIMARY KEY (tag, run_pk)
)
 WITHOUT ROWID;

CREATE TABLE events (
	run_pk INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	kind TEXT NOT NULL,
	time_ms INTEGER NOT NULL,
	actor TEXT,
	"key" TEXT,
	data TEXT NOT NULL,
	body BLOB,
	hash BLOB NOT NULL,
	PRIMARY KEY (run_pk, seq)
);

CREATE TABLE bodies (
	digest BLOB NOT NULL,
	body BLOB NOT NULL,
	PRIMARY KEY (digest)
);

CREATE TABLE nodes (
	id BLOB NOT NULL,
	parent BLOB,
	digest BLOB NOT NULL,
	PRIMARY KEY (id)
)
 WITHOUT ROWID;

CREATE TABLE inbox (
	"row" INTEGER NOT NULL,
	run_pk INTEGER NOT NULL,
	id TEXT NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	actor TEXT,
	received_at_ms INTEGER NOT NULL,
	data TEXT,
	payload TEXT,
	body BLOB,
	done INTEGER NOT NULL,
	PRIMARY KEY ("row"),
	UNIQUE (run_pk, id)
);

CREATE INDEX inbox_waiting ON inbox (run_pk) WHERE done = 0;

CREATE TABLE approvals (
	run_pk INTEGER NOT NULL,
	id TEXT NOT NULL,
	"key" TEXT NOT NULL,
	kind TEXT NOT NULL,
	question TEXT NOT NULL,
	call_digest TEXT NOT NULL,
	status TEXT NOT NULL,
	used INTEGER NOT NULL,
	requested_at_ms INTEGER NOT NULL,
	decided_by TEXT,
	reason TEXT NOT NULL,
	message_id TEXT,
	seq INTEGER NOT NULL,
	PRIMARY KEY (run_pk, id)
)
 WITHOUT ROWID;

CREATE INDEX approvals_open ON approvals (requested_at_ms) WHERE status = 'pending';

CREATE INDEX approvals_id ON approvals (id);

CREATE TABLE attempts (
	run_pk INTEGER NOT NULL,
	n INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	attempt INTEGER NOT NULL,
	at_ms INTEGER NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	model TEXT NOT NULL,
	status TEXT NOT NULL,
	cost_status TEXT NOT NULL,
	amount_pico_usd INTEGER,
	input_tokens INTEGER,
	output_tokens INTEGER,
	cache_read_tokens INTEGER,
	PRIMARY KEY (run_pk, n)
)
 WITHOUT ROWID;

CREATE TABLE attempt_details (
	run_pk INTEGER NOT NULL,
	n INTEGER NOT NULL,
	model_asked TEXT NOT NULL,
	model_served TEXT,
	request_id TEXT,
	response_id TEXT,
	tier TEXT,
	latency_ms INTEGER NOT NULL,
	error TEXT NOT NULL,
	price_source TEXT NOT NULL,
	price_version TEXT NOT NULL,
	price_date TEXT,
	price_reason TEXT NOT NULL,
	usage TEXT,
	raw_usage TEXT NOT NULL,
	PRIMARY KEY (run_pk, n)
)
 WITHOUT ROWID;

CREATE TABLE cost_lines (
	run_pk INTEGER NOT NULL,
	n INTEGER NOT NULL,
	line INTEGER NOT NULL,
	unit TEXT NOT NULL,
	quantity INTEGER NOT NULL,
	unit_price_usd TEXT,
	amount_pico_usd INTEGER,
	note TEXT NOT NULL,
	PRIMARY KEY (run_pk, n, line)
)
 WITHOUT ROWID;

CREATE TABLE agentflow_schema (
	version INTEGER NOT NULL,
	applied_at_ms INTEGER NOT NULL
);
