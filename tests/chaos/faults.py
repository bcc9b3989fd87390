"""What goes wrong: each fault does its harm, waits, and mends what a supervisor would mend."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.chaos.stage import CLOCKS_MS, ROLE, TTL, Member, Stage
from tests.chaos.takeover import Watch

OnMember = Callable[[Stage, Watch, Member], Awaitable[None]]
OnServer = Callable[[Stage], Awaitable[None]]
RESTART_SECONDS = 1.0  # of a supervisor
FROZEN_SECONDS = TTL + 2.0
FULL_SECONDS = 3.0  # from the first append that did not fit
FULL = "disk full on a small tablespace"


async def kill(stage: Stage, watch: Watch, member: Member) -> None:
    """SIGKILL; a supervisor starts another."""
    member.signal(signal.SIGKILL)
    await member.wait()
    await watch.left_by(member, "SIGKILL")
    await asyncio.sleep(RESTART_SECONDS)
    await member.start()


async def stop(stage: Stage, watch: Watch, member: Member) -> None:
    """SIGSTOP for twice the lease; then the zombie wakes up."""
    member.signal(signal.SIGSTOP)
    await watch.left_by(member, "SIGSTOP")
    await asyncio.sleep(2 * TTL)
    member.signal(signal.SIGCONT)


async def part(stage: Stage, watch: Watch, member: Member) -> None:
    """Nothing passes between the worker and the database for twice the lease; then all does."""
    member.proxy.part()
    await watch.left_by(member, "partition")
    await asyncio.sleep(2 * TTL)
    member.proxy.heal()


async def cut(stage: Stage, watch: Watch, member: Member) -> None:
    """The replies to some commits are lost, with their connections."""
    member.proxy.cuts = stage.draws.randint(1, 6)
    await asyncio.sleep(1.5)
    member.proxy.cuts = 0


async def set_clock(stage: Stage, watch: Watch, member: Member) -> None:
    """The clock of its host is set, forwards or backwards, by up to hours."""
    member.set_clock(stage.draws.choice(CLOCKS_MS) + stage.draws.randint(-5_000, 5_000))
    await asyncio.sleep(0.5)


async def drain(stage: Stage, watch: Watch, member: Member) -> None:
    """SIGTERM, as at a deployment: what it has is handed back, or finished."""
    member.signal(signal.SIGTERM)
    await member.wait()
    await member.start()


async def terminate(stage: Stage) -> None:
    """End the server's side of some connections, once a second."""
    for _ in range(3):
        await stage.look.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.6"
        )
        await asyncio.sleep(1.0)


async def restart(stage: Stage) -> None:
    """Stop the server at once, as in a crash, and start it again."""
    await asyncio.to_thread(stage.server.stop, signal.SIGQUIT)
    await asyncio.sleep(stage.draws.uniform(0.0, 1.5))
    await asyncio.to_thread(stage.server.start)


async def freeze(stage: Stage) -> None:
    """Stop all processes of the server for longer than a lease: it answers nothing."""
    assert stage.server.process is not None
    frozen = family(stage.server.process.pid)
    for pid in frozen:
        quietly(pid, signal.SIGSTOP)
    await asyncio.sleep(FROZEN_SECONDS)
    for pid in reversed(frozen):
        quietly(pid, signal.SIGCONT)


async def exhaust(stage: Stage) -> None:
    """There are no connections left: those that are open are closed, and hardly any is granted."""
    await stage.look.patiently(f"ALTER ROLE {ROLE} CONNECTION LIMIT 2")
    await terminate(stage)
    await stage.look.patiently(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")


async def fill(stage: Stage) -> None:
    """There is no room for another event, and then there is."""
    assert stage.disk is not None
    refused = stage.refused_for_space
    stage.disk.fill()
    try:
        async with asyncio.timeout(FROZEN_SECONDS * 2):
            while stage.refused_for_space == refused:
                await asyncio.sleep(0.1)
        await asyncio.sleep(FULL_SECONDS)
    finally:
        stage.disk.free()


def family(parent: int) -> list[int]:
    """Return a process and its children: backends have process groups of their own."""
    found = [parent]
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == parent:
            found.append(int(entry.parent.name))
    return found


def quietly(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


ON_MEMBER: dict[str, OnMember] = {
    "SIGKILL": kill,
    "SIGSTOP for twice the lease": stop,
    "partition of a worker": part,
    "replies to COMMIT cut off": cut,
    "clock of a host set": set_clock,
    "SIGTERM": drain,
}
ON_SERVER: dict[str, OnServer] = {
    "pg_terminate_backend": terminate,
    "immediate restart of the server": restart,
    "frozen server": freeze,
    "no connections left": exhaust,
    FULL: fill,
}


class Faults:
    """Does harm in rounds, by a plan or by chance, and counts it.

    Attributes:
        done: Number of faults by name; those that cannot be done here are left out.
        ended_at: When the last one was over, on the monotonic clock.
    """

    def __init__(self, stage: Stage, watch: Watch) -> None:
        self._on_server = [name for name in ON_SERVER if stage.disk is not None or name != FULL]
        self.done: dict[str, int] = dict.fromkeys([*ON_MEMBER, *self._on_server], 0)
        self.ended_at = 0.0
        self._stage = stage
        self._watch = watch

    async def for_seconds(self, seconds: float, is_enough: Callable[[], bool]) -> None:
        """Do harm by chance: the workers' troubles, at times the server's, at times both.

        It goes on until there was enough work, for up to twice the time.
        """
        began = time.monotonic()
        queue: list[tuple[str, ...]] = []
        while (spent := time.monotonic() - began) < 2 * seconds:
            if spent >= seconds and is_enough():
                break
            if not queue:
                queue = self._drawn()
            await self.round(queue.pop())

    def _drawn(self) -> list[tuple[str, ...]]:
        """Return rounds in which every fault comes once or more, in a new order."""
        draws = self._stage.draws
        alone = [(name,) for name in self._on_server]
        pairs = [("SIGKILL", "SIGKILL"), ("SIGKILL", draws.choice(list(ON_MEMBER)))]
        pairs += [(name, draws.choice(list(ON_MEMBER))) for name in ON_MEMBER]
        both = [(draws.choice(self._on_server), draws.choice(list(ON_MEMBER)))]
        rounds: list[tuple[str, ...]] = [*alone, *pairs, *both]
        draws.shuffle(rounds)
        return rounds

    async def round(self, names: tuple[str, ...]) -> None:
        """Do some faults at once, on different workers, and wait until all are over."""
        members = self._stage.draws.sample(self._stage.members, len(self._stage.members))
        async with asyncio.TaskGroup() as group:
            for name in names:
                if name not in self.done:
                    continue
                self.done[name] += 1
                if name in ON_SERVER:
                    group.create_task(self._disturbed(ON_SERVER[name]))
                else:
                    group.create_task(self._down(ON_MEMBER[name], members.pop()))
        self.ended_at = time.monotonic()
        if not ON_SERVER.keys() & set(names):
            await self._watch.done()  # so that what comes next does not disturb what is timed
        await asyncio.sleep(self._stage.draws.uniform(0.2, 1.5))

    async def _disturbed(self, fault: OnServer) -> None:
        with self._watch.disturbed():
            await fault(self._stage)

    async def _down(self, fault: OnMember, member: Member) -> None:
        member.is_down = True
        await fault(self._stage, self._watch, member)
        member.is_down = False
