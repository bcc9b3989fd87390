"""When something is due again and again, and what of it is started. Pure: the time comes in."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Literal

from agentflow.clock import to_ms
from agentflow.codec import Payload
from agentflow.dataclass import dataclass
from agentflow.errors import UsageError
from agentflow.ledger.budgets import Limits
from agentflow.loading import load

Overlap = Literal["skip", "buffer", "cancel", "allow"]
OVERLAPS: tuple[Overlap, ...] = ("skip", "buffer", "cancel", "allow")

SHORTEST_MS = 1_000  # nothing is due more often: due times are whole seconds
AT_ONCE = 1_000  # due times that are looked at together; the others come a moment later


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Times at which something is due: those of a cron expression, or of an interval.

    Attributes:
        cron: Five fields (or six, the first being seconds), or ``""``.
        timezone: IANA name of the zone that `cron` is read in.
        every_ms: Interval in milliseconds, where there is no `cron`.
        anchor_ms: The time from which intervals are counted.
    """

    cron: str = ""
    timezone: str = "UTC"
    every_ms: int = 0
    anchor_ms: int = 0

    def after(self, ms: int) -> int | None:
        """Return the first due time behind *ms*, both in milliseconds; None = there is none.

        Source:
            As Debian's cron does it: what is due in the hour that a change of the clocks leaves
            out comes right behind it; what is due in the hour that comes twice is due once,
            unless it is due every hour, or more often.
        """
        if not self.cron:
            steps = (ms - self.anchor_ms) // self.every_ms + 1
            return self.anchor_ms + steps * self.every_ms
        since = datetime.fromtimestamp(ms // 1000, zone_of(self.timezone))
        found = next(load("cronsim").CronSim(self.cron, since), None)
        return None if found is None else to_ms(found)

    @property
    def words(self) -> str:
        """The timetable in words.

        >>> Timetable(cron="0 9 * * mon-fri", timezone="Europe/Berlin").words
        '0 9 * * mon-fri (Europe/Berlin)'
        >>> Timetable(every_ms=90_000).words
        'every 90 s'
        """
        if self.cron:
            return f"{self.cron} ({self.timezone})"
        return f"every {self.every_ms / 1000:g} s"


def zone_of(name: str) -> tzinfo:
    """Return a time zone.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        found: tzinfo = load("zoneinfo").ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        msg = f"there is no time zone {name!r}"
        raise UsageError(msg, hint="Use a name such as Europe/Berlin, or UTC.") from None
    return found


def checked(table: Timetable) -> Timetable:
    """Return *table* if it makes sense.

    Raises:
        UsageError: both or none of cron and interval, a wrong expression, an unknown zone.
    """
    if table.cron and table.every_ms:
        raise UsageError("a schedule has either a cron expression or an interval")
    if not table.cron and table.every_ms < SHORTEST_MS:
        msg = f"an interval of {table.every_ms} ms is shorter than a second"
        hint = "Name a cron expression, or an interval of a second or longer."
        raise UsageError(msg, hint=hint)
    zone_of(table.timezone)
    if table.cron:
        module = load("cronsim")
        try:
            due = table.after(0)
        except module.CronSimError as e:
            msg = f"cron expression {table.cron!r}: {str(e).lower()}"
            hint = "Write minute hour day month weekday, such as: 0 9 * * mon-fri"
            raise UsageError(msg, hint=hint) from None
        if due is None:
            raise UsageError(f"cron expression {table.cron!r} is never due")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as it stands.

    Attributes:
        project: Project of the schedule and of its runs.
        name: Unique in the project; begins the ids of its runs.
        workflow: Registered name.
        table: When it is due.
        overlap: What happens at a due time while its last run is still going: ``skip`` it,
            ``buffer`` one until that run has ended, ``cancel`` that run and start behind its end,
            or ``allow`` both.
        catch_up_ms: How late a run may be started, in milliseconds, where no worker was there.
        payload: The input of each run.
        queue: Queue of its runs. priority, concurrency_key, tags: as in a start.
        limits: What each run may spend, or None.
        paused: Whether nothing is due for now.
        next_due_ms: When it is due next; None = never again.
        last_due_ms: The due time that was started last.
        last_run_id: The run that was started last.
        buffered_due_ms: A due time that waits for the end of that run.
        started: Number of runs that were started.
        skipped: Number of due times that were not, because a run was still going.
        missed: Number of due times that were not, because no worker was there in time.
        created_at_ms: When it was made.
        version: Grows with each change; writers compare it.
    """

    project: str
    name: str
    workflow: str
    table: Timetable
    overlap: Overlap
    catch_up_ms: int
    payload: Payload
    queue: str = "default"
    priority: int = 0
    concurrency_key: str = ""
    tags: tuple[str, ...] = ()
    limits: Limits | None = None
    paused: bool = False
    next_due_ms: int | None = None
    last_due_ms: int | None = None
    last_run_id: str | None = None
    buffered_due_ms: int | None = None
    started: int = 0
    skipped: int = 0
    missed: int = 0
    created_at_ms: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to happen now.

    Attributes:
        starts: Due times to start, oldest first.
        cancel: Whether the last run is to be cancelled.
        next_due_ms: When it is due next.
        buffered_due_ms: A due time that waits.
        skipped: Number of due times that are given up because a run is still going.
        missed: Number of due times that are given up because nobody was there in time.
    """

    starts: tuple[int, ...] = ()
    cancel: bool = False
    next_due_ms: int | None
    buffered_due_ms: int | None = None
    skipped: int = 0
    missed: int = 0


def decide(one: Schedule, now_ms: int, *, is_active: bool) -> Decision | None:
    """Return what is to be done about a schedule, or None for nothing.

    Due times that come together, because nobody was there before, count as one but for ``allow``.

    Args:
        one: The schedule.
        now_ms: The time.
        is_active: Whether its last run is still going.
    """
    due, missed, next_due = _due(one, now_ms)
    waiting = [] if one.buffered_due_ms is None else [one.buffered_due_ms]
    if not due and not missed and (not waiting or is_active):
        return None
    starts, cancel, buffered = _chosen(one.overlap, waiting, due, is_active=is_active)
    kept = len(starts) + (buffered is not None)
    return Decision(
        starts=tuple(starts),
        cancel=cancel,
        next_due_ms=next_due,
        buffered_due_ms=buffered,
        skipped=len(waiting) + len(due) - kept,
        missed=missed,
    )


def _due(one: Schedule, now_ms: int) -> tuple[list[int], int, int | None]:
    """Return the times that are due, how many came too late, and when it is due next."""
    table, at, missed = one.table, one.next_due_ms, 0
    if one.paused:
        return [], 0, at
    oldest = now_ms - one.catch_up_ms
    while at is not None and at < oldest and at <= now_ms and missed < AT_ONCE:
        at, missed = table.after(at), missed + 1
    if at is not None and at < oldest:
        at = table.after(oldest - 1)  # too many to be counted one by one
    due: list[int] = []
    while at is not None and at <= now_ms and len(due) < AT_ONCE:
        due.append(at)
        at = table.after(at)
    return due, missed, at


def _chosen(
    overlap: Overlap, waiting: list[int], due: list[int], *, is_active: bool
) -> tuple[list[int], bool, int | None]:
    """Return what to start, whether to cancel, and what is to wait."""
    pending = [*waiting, *due]
    if overlap == "allow":
        return pending, False, None
    if not pending:
        return [], False, None
    if not is_active:
        # What was promised goes first; of several that come together the newest is meant.
        first = waiting[0] if waiting and overlap == "buffer" else pending[-1]
        rest = due[-1] if waiting and due and overlap == "buffer" else None
        return [first], False, rest
    match overlap:
        case "buffer":
            return [], False, pending[0]
        case "cancel":
            return [], bool(due), pending[-1]
        case _:
            return [], False, None


def run_id(name: str, due_ms: int) -> str:
    """Return the id of the run of a due time: the same from every worker.

    >>> run_id("report", 1_800_000_000_000), run_id("report", 1_800_000_000_250)
    ('report-2027-01-15T08:00:00Z', 'report-2027-01-15T08:00:00.250Z')
    """
    at = datetime.fromtimestamp(due_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    rest = due_ms % 1000
    return f"{name}-{at}.{rest:03d}Z" if rest else f"{name}-{at}Z"
