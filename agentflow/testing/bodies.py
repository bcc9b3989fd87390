"""Bodies of payloads outside of a store."""

from __future__ import annotations

from agentflow.codec import MessageNode
from agentflow.errors import PayloadErased


class LoadedBodies:
    """Bodies and chain nodes, all in memory: what tests look at is small."""

    def __init__(self, bodies: dict[bytes, bytes], nodes: dict[bytes, MessageNode]) -> None:
        self._bodies = bodies
        self._nodes = nodes

    def body(self, digest: bytes) -> bytes | None:
        """Return a sealed body."""
        return self._bodies.get(digest)

    def chain(self, head: bytes, count: int) -> list[tuple[MessageNode, bytes]]:
        """Return the last *count* nodes up to *head*, oldest first.

        Raises:
            PayloadErased: a node or a body is missing.
        """
        found: list[tuple[MessageNode, bytes]] = []
        at: bytes | None = head
        while at is not None and len(found) < count:
            node = self._nodes.get(at)
            if node is None or node.digest not in self._bodies:
                break
            found.append((node, self._bodies[node.digest]))
            at = node.parent
        if len(found) < count:
            msg = f"{count - len(found)} of {count} messages up to {head.hex()[:12]} are missing"
            raise PayloadErased(msg)
        return found[::-1]
