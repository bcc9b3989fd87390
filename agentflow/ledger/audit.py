"""Every figure of the ledger once more, from what it was made of.

line = quantity x unit price · attempt = sum of its lines · counts = usage = the vendor's own words,
read again = the answer that the history has, which is hashed · price = today's book, where it is
the version that was used · run = sum of its attempts. What cannot be checked is counted with its
reason, and is never called right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, fields, replace
from datetime import datetime
from typing import Any

from agentflow.clock import from_ms
from agentflow.dataclass import dataclass
from agentflow.ledger.entries import EXACT, PICO, AttemptRecord, CostLine, Priced, usd
from agentflow.ledger.reports import CostGroup, LedgerRow
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage

ReadUsage = Callable[[str, Mapping[str, Any]], Usage | None]
"""(model, raw usage) → usage, as its provider's adapter reads it; LookupError: nobody can."""

Recorded = tuple[tuple[str, int], ModelResponse]
"""((key, attempt), answer) as a run's history has it."""

_INPUT = {"input", "input_audio", "cache_read"}  # and every cache_write
_OUTPUT = {"output", "output_audio", "output_reasoning"}
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens")
_BILLED = {"priced", "partial", "unpriced"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure that does not follow from what it was made of.

    Attributes:
        key: The call, or "" for the run as a whole.
        attempt: Its attempt.
        n: Number of the entry in its run; 0 for the run as a whole.
        what: Which figure.
        stored: What the ledger says.
        derived: What it should be.
    """

    run_id: str
    key: str = ""
    attempt: int = 0
    n: int = 0
    what: str
    stored: str
    derived: str

    def __str__(self) -> str:
        """Return it in one line."""
        place = f"{self.key} attempt {self.attempt}: " if self.key else ""
        return f"{place}{self.what} is {self.stored}, derived {self.derived}"


@dataclass(slots=True)
class Audit:
    """Checks entries one after another, run by run.

    Args:
        read_usage: Reads a vendor's raw usage again.
        reprice: Today's price book.

    Attributes:
        differences: What was found.
        entries: Number of attempts and adjustments that were checked.
        lines: Number of cost lines that were checked.
        reread: Number of attempts whose quantities were derived from the raw usage.
        repriced: Number of attempts that were priced again.
        answers: Number of recorded answers that were compared with their entries.
        skipped: Number of attempts by what could not be checked, and why.
    """

    read_usage: ReadUsage
    reprice: Callable[..., Priced]
    differences: list[Difference] = field(default_factory=list)
    entries: int = 0
    lines: int = 0
    reread: int = 0
    repriced: int = 0
    answers: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    _sums: dict[str, int] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=dict)
    _seen: dict[tuple[str, int], list[LedgerRow]] = field(default_factory=dict)

    def check(self, row: LedgerRow) -> None:
        """Check one entry; those of a run come in the order of their numbers."""
        self.entries += 1
        self.lines += len(row.record.priced.lines)
        number = self._last.get(row.run_id, 0) + 1
        if row.n != number:
            self._found(row, "the number of the entry", row.n, number)
        self._last[row.run_id] = row.n
        amount = row.counted.amount_pico_usd if row.counted is not None else None
        self._sums[row.run_id] = self._sums.get(row.run_id, 0) + (amount or 0)
        for line in row.record.priced.lines:
            self._check_line(row, line)
        self._check_counted(row)
        if row.record.kind == "model":
            self._seen.setdefault((row.key, row.attempt), []).append(row)
            if row.record.priced.status == "cached":
                self._check_reused(row)
                return
            self._check_usage(row)
            self._check_quantities(row)
            self._check_price(row)

    def check_answers(self, run_id: str, answers: Iterable[Recorded]) -> None:
        """Check the entries of a run, which were seen last, against the answers in its history.

        Segments of `continue_as_new` count their calls anew: then several entries have one key
        and one attempt, and each answer takes the first of them that is its own.

        Args:
            run_id: The run.
            answers: Recorded answers in their order, each with its (key, attempt).
        """
        for (key, attempt), answer in answers:
            rows = self._seen.get((key, attempt))
            if not rows:
                self.differences.append(
                    Difference(
                        run_id=run_id,
                        key=key,
                        attempt=attempt,
                        what="the entry of a recorded answer",
                        stored="missing",
                        derived=f"an entry of {answer.model}",
                    )
                )
                continue
            self.answers += 1
            own = next((r for r in rows if not _unlike(r.record, answer)), None)
            row = own or next((r for r in rows if r.record.status == "ok"), rows[0])
            rows.remove(row)
            for what, stored, recorded in _unlike(row.record, answer):
                self._found(row, f"{what}, against the history,", stored, recorded)
        self._seen.clear()

    def check_run(self, group: CostGroup) -> None:
        """Check a run's total against the entries that were seen of it."""
        derived = self._sums.pop(group.group, 0)
        if group.amount_pico_usd != derived:
            self.differences.append(
                Difference(
                    run_id=group.group,
                    what="the run's total",
                    stored=_dollars(group.amount_pico_usd),
                    derived=_dollars(derived),
                )
            )

    def _found(self, row: LedgerRow, what: str, stored: object, derived: object) -> None:
        self.differences.append(
            Difference(
                run_id=row.run_id,
                key=row.key,
                attempt=row.attempt,
                n=row.n,
                what=what,
                stored=str(stored),
                derived=str(derived),
            )
        )

    def _check_line(self, row: LedgerRow, line: CostLine) -> None:
        derived = amount_of(line)
        if line.amount_pico_usd != derived:
            self._found(
                row, f"the amount of {line.unit}", _dollars(line.amount_pico_usd), _dollars(derived)
            )

    def _check_counted(self, row: LedgerRow) -> None:
        if row.counted is None:
            return
        derived = row.record.priced.amount_pico_usd
        if row.counted.amount_pico_usd != derived:
            stored = _dollars(row.counted.amount_pico_usd)
            self._found(row, "the amount of the attempt", stored, _dollars(derived))
        for name in _TOKENS:
            usage = row.record.usage
            counted, used = (
                getattr(row.counted, name),
                None if usage is None else getattr(usage, name),
            )
            if counted != used:
                self._found(row, f"the count of {name}", counted, used)

    def _check_reused(self, row: LedgerRow) -> None:
        """Check that an answer of the cache used nothing, and saves what its line says."""
        record = row.record
        if record.usage != Usage():
            self._found(row, "the usage of a cached answer", record.usage, Usage())
        would = [replace(line, unit_price_usd=line.list_price_usd) for line in record.priced.lines]
        amounts = [amount_of(line) for line in would]
        known = [amount for amount in amounts if amount is not None]
        derived = sum(known) if known else None
        if record.priced.list_saved_pico_usd != derived:
            stored = _dollars(record.priced.list_saved_pico_usd)
            self._found(row, "the saving of a cached answer", stored, _dollars(derived))

    def _check_usage(self, row: LedgerRow) -> None:
        """Check the usage against the vendor's own words."""
        record = row.record
        if not record.raw_usage:
            if record.usage is not None:
                self.skipped["the vendor's own words were not kept"] += 1
            return
        if record.usage is None:
            self.skipped["an attempt without an answer: its usage counts as unknown"] += 1
            return
        model = record.model_served or record.model_asked
        try:
            derived = self.read_usage(model, record.raw_usage)
        except LookupError:
            self.skipped[f"nobody reads the usage of {model.partition(':')[0]}"] += 1
            return
        self.reread += 1
        for one in fields(Usage):
            stored = getattr(record.usage, one.name)
            again = None if derived is None else getattr(derived, one.name)
            if stored != again:
                self._found(row, f"the usage's {one.name}", stored, again)

    def _check_quantities(self, row: LedgerRow) -> None:
        """Check that the lines bill what was used, whatever the prices are."""
        usage, priced = row.record.usage, row.record.priced
        if usage is None or priced.status not in _BILLED or usage.iterations:
            return  # iterations bill more than the totals say; pricing again checks them
        if "does not add up" in priced.reason:
            return
        wanted = (
            ("input tokens", usage.input_tokens, _INPUT),
            ("output tokens", usage.output_tokens, _OUTPUT),
            ("web searches", usage.web_search_count, {"web_search"}),
        )
        for what, used, units in wanted:
            billed = sum(
                line.quantity
                for line in priced.lines
                if line.unit in units or (units is _INPUT and line.unit.startswith("cache_write"))
            )
            if billed != used:
                self._found(row, f"the number of {what} billed", billed, used)

    def _check_price(self, row: LedgerRow) -> None:
        """Price the usage again, where today's book is the version that was used."""
        record = row.record
        if record.usage is None or record.priced.status not in _BILLED:
            return
        if record.priced_at_ms is None:
            self.skipped["not priced again: when it was priced was not kept"] += 1
            return
        at: datetime = from_ms(record.priced_at_ms)
        model = record.model_served or record.model_asked
        today = self.reprice(
            record.usage, model=model, at=at, tier=record.tier, context=record.context
        )
        if (today.source, today.version) != (record.priced.source, record.priced.version):
            book = " ".join(part for part in (record.priced.source, record.priced.version) if part)
            self.skipped[f"not priced again: prices of {book or 'a book without a name'}"] += 1
            return
        self.repriced += 1
        for what, stored, again in _compared(record.priced, today):
            if stored != again:
                self._found(row, what, stored, again)


def _unlike(record: AttemptRecord, answer: ModelResponse) -> list[tuple[str, object, object]]:
    """Return (what, in the ledger, in the history) of what differs."""
    return [one for one in _recorded(record, answer) if one[1] != one[2]]


def _recorded(record: AttemptRecord, answer: ModelResponse) -> Iterator[tuple[str, object, object]]:
    """Yield (what, in the ledger, in the history) of what both have."""
    yield "the model", record.model_served, answer.model
    yield "the tier", record.tier, answer.service_tier
    yield "the usage", record.usage, answer.usage
    yield "the vendor's own words", record.raw_usage, answer.raw_usage
    known = record.priced.status in {"priced", "not_billed", "cached"}
    amount = record.priced.amount_pico_usd if known else None
    yield "the cost", _dollars(amount), _dollars(answer.cost_pico_usd)


def _compared(stored: Priced, today: Priced) -> Iterator[tuple[str, str, str]]:
    """Yield (what, stored, derived) for everything that a price is made of."""
    yield "the cost status", stored.status, today.status
    yield "the price's date", str(stored.price_date), str(today.price_date)
    yield "the reason", stored.reason, today.reason
    yield "the amount at today's price", _sum(stored), _sum(today)
    yield "the lines at today's prices", _words(stored), _words(today)
    yield (
        "the saving by the prompt cache",
        _dollars(stored.cache_saved_pico_usd),
        _dollars(today.cache_saved_pico_usd),
    )
    yield (
        "the saving against the list",
        _dollars(stored.list_saved_pico_usd),
        _dollars(today.list_saved_pico_usd),
    )


def _sum(priced: Priced) -> str:
    return _dollars(priced.amount_pico_usd)


def _words(priced: Priced) -> str:
    return ", ".join(
        f"{line.quantity} {line.unit} at "
        + ("?" if line.unit_price_usd is None else f"{line.unit_price_usd.normalize():f}")
        for line in priced.lines
    )


def amount_of(line: CostLine) -> int | None:
    """Return quantity x unit price in pico-USD, half to even; None where no price is known."""
    if line.unit_price_usd is None:
        return None
    exact = EXACT.multiply(EXACT.multiply(line.unit_price_usd, line.quantity), PICO)
    return int(EXACT.to_integral_value(exact))


def _dollars(amount_pico_usd: int | None) -> str:
    return "unknown" if amount_pico_usd is None else f"${usd(amount_pico_usd):f}"
