"""A SQLite file that several workers share with leases, as they do a server.

For tests of what leases do, without a server. Nobody should use a file like that: every commit
waits for every other.
"""

from __future__ import annotations

from pathlib import Path

from agentflow.storage.dialects.sqlite import SqliteDialect
from agentflow.storage.store import SqlStore


class SharedFile(SqliteDialect):
    """A file without an owner."""

    is_shared = True

    def try_own(self, worker_id: str) -> bool:
        """Let everybody work."""
        del worker_id
        return True


def shared_store(path: Path) -> SqlStore:
    """Return a store on a shared file."""
    return SqlStore(SharedFile(f"sqlite:///{path}", durability="process"))
