"""(a) The floor: raw sqlite3, one row a commit, and many rows a commit."""

from __future__ import annotations

import sqlite3

from meter import Meter, arguments, report

_ROW = b"x" * 200


def main() -> None:
    args = arguments(n=1000, durability="full", group=2000)
    conn = sqlite3.connect(args.db, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute(f"PRAGMA synchronous={'FULL' if args.durability == 'full' else 'NORMAL'}")
    conn.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB)")
    meter = Meter()
    for _ in range(args.n):
        conn.execute("BEGIN IMMEDIATE")
        conn.execute("INSERT INTO t (body) VALUES (?)", (_ROW,))
        conn.execute("COMMIT")
    one = meter.read(count=args.n)
    meter = Meter()
    conn.execute("BEGIN IMMEDIATE")
    conn.executemany("INSERT INTO t (body) VALUES (?)", [(_ROW,)] * args.group)
    conn.execute("COMMIT")
    grouped = meter.read(count=args.group)
    report(**one, group_us=grouped["wall_us"])


if __name__ == "__main__":
    main()
