"""Who may see to a parcel, where workers share a database."""

from __future__ import annotations

from pathlib import Path

from agentflow.clock import SystemClock
from agentflow.storage.schema import parcels
from agentflow.storage.writer import each
from tests.contract.shared_file import shared_store

LATER_MS = 60_000


async def test_a_parcel_waits_for_its_worker_and_is_let_go_when_that_stops(tmp_path: Path) -> None:
    """A peer neither takes it nor keeps asking for it; after a stop it takes it at once."""
    store = shared_store(tmp_path / "p.db")
    await store.open()
    now = SystemClock().now_ms()
    row = {
        "id": "p1", "model": "anthropic:m", "latency": "24h", "state": "packing", "calls": 1,
        "next_at_ms": now, "lease_until_ms": 0, "sent_at_ms": 0, "tries": 0, "looks": 0,
        "stopped": 0, "created_at_ms": now,
    }  # fmt: skip
    await store._db.write(each(lambda tx, _: tx.conn.execute(parcels.insert(), [row])), None)
    mine = await store.claim_parcels("w1", now_ms=now, limit=9)
    theirs = await store.claim_parcels("w2", now_ms=now, limit=9)
    due = await store.next_parcel_ms("w2")
    own = await store.next_parcel_ms("w1")
    await store.leave("w1")
    after = await store.claim_parcels("w2", now_ms=now, limit=9)
    await store.close()

    assert [parcel.id for parcel in mine] == ["p1"]
    assert theirs == []
    assert own == now
    assert due is not None
    assert due > now + LATER_MS
    assert [parcel.id for parcel in after] == ["p1"]
