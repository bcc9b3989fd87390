"""The price book: usage in, cost lines out, exact to the pico-dollar.

Prices come from genai-prices (Decimals, with history, tiers and variants); `rules` adds what it
leaves to its callers, `overlay` what was negotiated, `rates` makes unit prices of the three, and
`bill` multiplies. Whatever is not understood is said: the status is ``partial`` and the reason
names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from agentflow.ledger.bill import Bill, iteration_doubts, iterations, unknown_fields
from agentflow.ledger.budgets import Ceiling
from agentflow.ledger.ceiling import ceiling_of
from agentflow.ledger.entries import CostStatus, Priced
from agentflow.ledger.overlay import Overlay
from agentflow.ledger.rates import SOURCE, Sheet, find, is_timed, make_sheet, snapshot, version
from agentflow.ledger.rules import vendor_of
from agentflow.llm.usage import Usage

SCRIPTED = "scripted"  # models of the box that answer from a script: nobody bills them
FIRST_PRICE_AT = datetime(2020, 6, 11, tzinfo=UTC)
"""Nothing was sold by the token before. Source: openai.com, "OpenAI API", of that day."""

SHEETS = 4096  # (model, day, facts) kept in memory, 2 kB each


class GenaiPriceBook:
    """A `PriceBook` over genai-prices, with the rules of the vendors and negotiated prices.

    Unit prices are kept per model, day and facts of the call, so that only the first attempt
    of its kind is looked up.

    Args:
        overlays: Negotiated prices; of several that name a unit, the last one wins.
    """

    def __init__(self, overlays: Sequence[Overlay] = ()) -> None:
        self._overlays = tuple(overlays)
        self._book: object = None
        self._sheet = lru_cache(maxsize=SHEETS)(self._make_sheet)
        self._is_timed = lru_cache(maxsize=SHEETS)(self._find_timed)
        self._ceilings: dict[tuple[object, ...], Ceiling | str] = {}

    def price(
        self,
        usage: Usage | None,
        *,
        model: str,
        at: datetime,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Priced:
        """Return what *usage* of *model* cost at that time.

        Args:
            usage: Token counts as billed, or None where the vendor did not say.
            model: ``provider:name`` as served.
            at: Time of the call; a naive one is taken as UTC.
            tier: Service tier as served, or None where the vendor did not say.
            context: Facts that change the price; `agentflow.ledger.rules` has the table.

        Returns:
            Cost lines in pico-USD. Never raises for what is unknown: an unknown model is
            ``unpriced``, usage of None is ``unknown_usage``, and a unit, a tier or a fact that
            is not understood makes it ``partial``, each with the reason.

        Source:
            Sum of quantity x unit price. Cached tokens, cache writes and audio leave the input
            count first, because `Usage.input_tokens` includes them.
        """
        facts = dict(context or {})
        if vendor_of(model)[0] == SCRIPTED:
            return Priced(status="not_billed", source=SCRIPTED, reason="scripted model")
        if "unbilled" in facts:
            return _without_lines("not_billed", facts["unbilled"] or "the vendor does not bill it")
        if usage is None:
            return _without_lines("unknown_usage", "the vendor did not say what was used")
        bill = Bill()
        main = self.sheet(model, at=at, tier=tier, context=facts)
        if usage.iterations:
            self._charge_iterations(bill, usage, model, at, (tier, facts))
        else:
            bill.charge_tokens(main, usage, model=model)
        bill.charge_calls(main, usage)
        if (at if at.tzinfo else at.replace(tzinfo=UTC)) < FIRST_PRICE_AT:
            bill.doubts.append(f"the clock says {at.date()}, before any price: the first is used")
        if unknown := unknown_fields(usage):
            bill.doubts.append(f"usage is not understood: {', '.join(unknown)}")
        return bill.priced(version(), price_date=main.price_date if main else None)

    def _charge_iterations(
        self,
        bill: Bill,
        usage: Usage,
        model: str,
        at: datetime,
        facts: tuple[str | None, Mapping[str, str]],
    ) -> None:
        """Charge each iteration at its own model, length and facts.

        The totals of a call leave compaction and advisor out, and a fallback answers with
        another model than the one that was asked first.
        """
        provider, _, served = model.partition(":")
        for part, used, note in iterations(usage):
            own = f"{provider}:{part.get('model') or served}"
            tier = str(part["service_tier"]) if part.get("service_tier") else facts[0]
            told = {k: str(part[k]) for k in ("speed", "inference_geo") if part.get(k)}
            sheet = self.sheet(own, at=at, tier=tier, context={**facts[1], **told})
            bill.charge_tokens(sheet, used, model=own, note=f"{note}, {own.partition(':')[2]}")
        bill.doubts += iteration_doubts(usage, served)

    def sheet(
        self,
        model: str,
        *,
        at: datetime,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Sheet | None:
        """Return the prices of a model at that time, or None where nobody has any.

        Args:
            model: ``provider:name`` as served.
            at: Time of the call; a naive one is taken as UTC.
            tier: Service tier as served.
            context: Facts that change the price; `agentflow.ledger.rules` has the table.

        Returns:
            All prices; kept in memory, so that the same question is looked up once.
        """
        facts = context or {}
        book = snapshot()
        if book is not self._book:  # genai-prices fetched newer ones, or a test set its own
            self._sheet.cache_clear()
            self._is_timed.cache_clear()
            self._ceilings.clear()
            self._book = book
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        if not self._is_timed(model):
            at = at.replace(hour=0, minute=0, second=0)
        return self._sheet(model, at.replace(microsecond=0), tier, tuple(sorted(facts.items())))

    def ceiling(
        self,
        model: str,
        *,
        at: datetime,
        input_tokens: int,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Ceiling | str:
        """Return the dearest prices that can apply to a call, or in words why none is known.

        Args:
            model: ``provider:name`` as asked.
            at: Time of the call; a naive one is taken as UTC.
            input_tokens: Input tokens at most.
            tier: Service tier as asked.
            context: Facts as asked, such as ``speed``.

        Returns:
            Prices in pico-USD, rounded up; see `agentflow.ledger.ceiling`.
        """
        if vendor_of(model)[0] == SCRIPTED:
            return Ceiling(input_pico_usd=0, output_pico_usd=0)
        facts = context or {}
        main = self.sheet(model, at=at, tier=None, context=facts)
        starts = main.lengths() if main is not None else []
        band = sum(1 for start in starts if input_tokens > start)
        hour = at.replace(minute=0, second=0, microsecond=0) if self._is_timed(model) else at.date()
        key = (model, hour, band, tier, tuple(sorted(facts.items())))
        found = self._ceilings.get(key)
        if found is None:
            entry = find(snapshot(), *vendor_of(model))
            if len(self._ceilings) >= SHEETS:
                self._ceilings.clear()
            found = self._ceilings[key] = ceiling_of(
                lambda served, told: self.sheet(model, at=at, tier=served, context=told),
                model=model,
                input_tokens=input_tokens,
                tier=tier,
                context=facts,
                window_tokens=entry[0].context_window if entry else None,
            )
        return found

    def _make_sheet(
        self, model: str, at: datetime, tier: str | None, facts: tuple[tuple[str, str], ...]
    ) -> Sheet | None:
        return make_sheet(
            snapshot(), self._overlays, model=model, at=at, tier=tier, context=dict(facts)
        )

    def _find_timed(self, model: str) -> bool:
        entry = find(snapshot(), *vendor_of(model))
        return entry is not None and is_timed(entry[0])


def _without_lines(status: CostStatus, reason: str) -> Priced:
    return Priced(status=status, source=SOURCE, version=version(), reason=reason)
