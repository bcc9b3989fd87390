"""Task paths and call keys: how a durable call is recognised on replay.

A task's path is ``parent.k``: ``0`` for the root, ``0.2`` for the second unnamed task that it
created, ``0.alice`` for one with an explicit asyncio name. A call's key is ``path/name#n``, with n
counted per task *and* name, so that adding a timeout, another activity or another branch re-keys
nothing. There is no counter that tasks share: two branches of a ``gather`` could swap answers.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from contextvars import ContextVar
from functools import lru_cache
from typing import Final

from agentflow.errors import UsageError

ROOT_PATH: Final = "0"

# "@" cannot begin a Python name: no activity can be called this, and one that is registered under
# it by hand is renamed by `_clean`, so that a timer and an activity never share a count.
TIMER_NAME: Final = "@timer"

_UNSAFE: Final = str.maketrans(dict.fromkeys("/#", "_"))
_UNSAFE_IN_PATH: Final = str.maketrans(dict.fromkeys("/#.~", "_"))


class Lineage:
    """Where a task stands in its run, and the counts of what it asked for.

    Attributes:
        path: The task's path, for example ``0.alice.2``.
    """

    __slots__ = ("_calls", "_children", "_last", "_names", "path")

    def __init__(self, path: str = ROOT_PATH) -> None:
        self.path = path
        self._children = 0
        # Most tasks create no named child and many ask for nothing: the tables wait for a need.
        self._names: dict[str, int] | None = None
        self._calls: dict[str, int] | None = None
        self._last: Lineage | None = None

    def __repr__(self) -> str:
        return f"Lineage({self.path!r})"

    def child(self, name: str | None = None) -> Lineage:
        """Return the lineage of a new task.

        Args:
            name: The task's explicit name, which then replaces the number; ``None`` counts. A
                second use gets ``~2``, a third ``~3``.

        Returns:
            A lineage whose path begins with this one's path and a dot.

        >>> root = Lineage()
        >>> [root.child(name).path for name in (None, "alice", None, "alice")]
        ['0.1', '0.alice', '0.2', '0.alice~2']
        """
        if name is not None:
            self._last = None
            return Lineage(self._named(name))
        self._children += 1
        child = self._last = Lineage(f"{self.path}.{self._children}")
        return child

    def rename(self, child: Lineage, name: str) -> bool:
        """Give *child* a name after the fact, as if it had been created with it.

        Python 3.11 and 3.12 create a task first and call ``set_name`` next. The number that was
        handed out is taken back, so that the paths are those of 3.13.

        Args:
            child: The child to rename.
            name: The explicit name.

        Returns:
            Whether that was done: only the newest unnamed child that has asked for nothing yet.
        """
        if self._last is not child or child._calls or child._children or child._names:
            return False
        self._last = None
        self._children -= 1
        child.path = self._named(name)
        return True

    def next_key(self, name: str) -> str:
        """Return the key of this task's next call of *name*.

        Args:
            name: The activity's registered name, or a word of the engine that begins with "@".

        Returns:
            ``path/name#n``, n from 1 per task and name.

        >>> root = Lineage()
        >>> [root.next_key(name) for name in ("fetch", "store", "fetch")]
        ['0/fetch#1', '0/store#1', '0/fetch#2']
        """
        return self._count(_clean(name))

    def next_timer_key(self) -> str:
        """Return the key of this task's next durable timer: ``path/@timer#n``, n from 1."""
        return self._count(TIMER_NAME)

    def _count(self, name: str) -> str:
        calls = self._calls
        if calls is None:
            calls = self._calls = {}
        count = calls[name] = calls.get(name, 0) + 1
        return f"{self.path}/{name}#{count}"

    def _named(self, name: str) -> str:
        segment = _clean_segment(name)
        if self._names is None:
            self._names = {}
        count = self._names[segment] = self._names.get(segment, 0) + 1
        return f"{self.path}.{segment}" if count == 1 else f"{self.path}.{segment}~{count}"


@lru_cache(maxsize=1024)  # a program has few names, and asks for each of them often
def _clean(name: str) -> str:
    # Cleaned before it is counted: two names that look alike afterwards share one count, so their
    # keys still differ.
    clean = "_".join(name.translate(_UNSAFE).split()) or "_"
    return clean if clean != TIMER_NAME else "_timer"


def _clean_segment(name: str) -> str:
    clean = "_".join(name.translate(_UNSAFE_IN_PATH).split()) or "_"
    # A task that is called "1" must not get the path of the first unnamed one. "~" cannot come
    # from a name, so no other name has this spelling.
    return f"~{clean}" if clean.isdecimal() else clean


# The lineage of a callback is that of the context which registered it; a task's own context is
# given the task's lineage when the task is made.
lineage_var: ContextVar[Lineage] = ContextVar("agentflow_lineage")


def find_lineage() -> Lineage | None:
    """Return the lineage of the workflow code that is running, or ``None`` outside of a run."""
    loop = events._get_running_loop()  # noqa: SLF001 -- get_running_loop() without its exception
    root: Lineage | None = getattr(loop, "lineage", None)
    if root is None:
        return None
    lineage: Lineage | None = getattr(asyncio.current_task(loop), "lineage", None)
    return lineage or lineage_var.get(root)


def current_lineage() -> Lineage:
    """Return the lineage of the workflow code that is running.

    Returns:
        The current task's; in a callback, that of the context which registered it.

    Raises:
        UsageError: No workflow is running here.
    """
    lineage = find_lineage()
    if lineage is None:
        raise UsageError(
            "No workflow is running here.", hint="Call this from a function under @workflow."
        )
    return lineage
