"""Budgets: what may be spent, what is held for calls in flight, and who may start. No I/O.

Money that a call may cost at most is reserved before it starts and settled when its outcome is
known. Of each budget, at every moment::

    spent + reserved <= limit        unless a provider billed more than its own terms allow

All amounts are integers: pico-USD (10^-12 USD) and tokens; bounds are rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from agentflow.dataclass import dataclass
from agentflow.errors import UsageError
from agentflow.ledger.entries import INT64, pico_usd, usd

Scope = Literal["run", "tree", "agent", "tag", "day"]
OnExhausted = Literal["pause", "raise", "clamp"]
SCOPES: tuple[Scope, ...] = ("run", "tree", "agent", "tag", "day")
ON_EXHAUSTED: tuple[OnExhausted, ...] = ("pause", "raise", "clamp")
EVERY_DAY = "every"
"""Name of the budget of the scope `day` whose limits each day gets."""

MARKS_PERCENT = (50, 80, 100)
LEAST_OUTPUT_TOKENS = 16
"""A shorter answer is not worth its input. Source: the least that OpenAI's Responses accept."""

CLAMPED_OUTPUT_TOKENS = 16_384
"""How long an answer may be at most where a budget clamps it and the call names no limit."""

MOST = INT64 // 4  # limits and bounds stay below, so that no sum of two leaves 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a budget allows; None = no limit of that kind, or, for a change, as before."""

    pico_usd: int | None = None
    tokens: int | None = None
    on_exhausted: OnExhausted | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is limited."""
        return self.pico_usd is None and self.tokens is None


def limits(limit_usd: object, limit_tokens: object, on_exhausted: object = None) -> Limits:
    """Return limits as people give them, checked.

    Raises:
        UsageError: an amount is a float, negative, no number or too large; an unknown word.

    >>> limits("2.50", None, "pause").pico_usd
    2500000000000
    """
    if on_exhausted is not None and on_exhausted not in ON_EXHAUSTED:
        msg = f"on_exhausted={on_exhausted!r} is none of {', '.join(ON_EXHAUSTED)}"
        raise UsageError(msg)
    if limit_tokens is not None and (
        isinstance(limit_tokens, bool) or not isinstance(limit_tokens, int)
    ):
        raise UsageError(f"a budget of {limit_tokens!r} tokens is no whole number")
    if limit_tokens is not None and not 0 <= limit_tokens < MOST:
        raise UsageError(f"a budget of {limit_tokens} tokens is negative or too large")
    amount = None if limit_usd is None else dollars_of(limit_usd)
    word: Any = on_exhausted
    return Limits(pico_usd=amount, tokens=limit_tokens, on_exhausted=word)


def dollars_of(given: object) -> int:
    """Return an amount of dollars as pico-USD.

    Args:
        given: Text, Decimal or int; never a float, which is not the number that was written.

    Raises:
        UsageError: it is something else, negative, or too large.

    >>> dollars_of("0.31")
    310000000000
    """
    if isinstance(given, (bool, float)) or not isinstance(given, (str, int, Decimal)):
        msg = f"{given!r} is no exact amount of dollars"
        raise UsageError(msg, hint='Write it as text, "2.50", or as a Decimal.')
    try:
        amount = pico_usd(Decimal(given))
    except InvalidOperation:
        msg = f"{given!r} is no amount of dollars"
        raise UsageError(msg, hint='Write it as "2.50".') from None
    if not 0 <= amount < MOST:
        raise UsageError(f"a budget of ${given} is negative or too large")
    return amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A budget as it stands.

    Attributes:
        project: Its project.
        scope: ``run`` (without child runs), ``tree`` (with them), ``agent``, ``tag`` or ``day``.
        name: Run's id, agent's name, tag, or day (ISO 8601, UTC).
        limit_pico_usd: The ceiling in pico-USD; None = none.
        limit_tokens: The ceiling in tokens, input and output together; None = none.
        spent_pico_usd: What was billed, and what may have been billed (`doubtful_pico_usd`).
        spent_tokens: The same in tokens.
        reserved_pico_usd: Held for calls in flight.
        reserved_tokens: The same in tokens.
        doubtful_pico_usd: Of what is spent: bounds of calls of which nobody knows the cost.
        over_pico_usd: What providers billed beyond the bound of the call.
        over_tokens: The same in tokens.
        on_exhausted: What happens to a call that does not fit.
        marked_percent: The highest soft mark that was passed: 0, 50, 80 or 100.
    """

    project: str
    scope: Scope
    name: str
    limit_pico_usd: int | None
    limit_tokens: int | None
    spent_pico_usd: int
    spent_tokens: int
    reserved_pico_usd: int
    reserved_tokens: int
    doubtful_pico_usd: int
    over_pico_usd: int
    over_tokens: int
    on_exhausted: OnExhausted
    marked_percent: int

    @property
    def label(self) -> str:
        """The budget in one word, as the command line takes it."""
        return f"{self.scope}:{self.name}"

    @property
    def limit_usd(self) -> Decimal | None:
        """The ceiling in dollars."""
        return None if self.limit_pico_usd is None else usd(self.limit_pico_usd)

    @property
    def spent_usd(self) -> Decimal:
        """What is spent in dollars."""
        return usd(self.spent_pico_usd)

    @property
    def reserved_usd(self) -> Decimal:
        """What is held for calls in flight in dollars."""
        return usd(self.reserved_pico_usd)

    @property
    def left_usd(self) -> Decimal | None:
        """What a new call may still cost in dollars; None without a ceiling."""
        if self.limit_pico_usd is None:
            return None
        return usd(max(0, self.limit_pico_usd - self.spent_pico_usd - self.reserved_pico_usd))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The highest prices that can apply to a call, in pico-USD, rounded up.

    Attributes:
        input_pico_usd: One input token.
        output_pico_usd: One output token.
        request_pico_usd: One request.
        window_tokens: The model's context window, where it is known.
    """

    input_pico_usd: int
    output_pico_usd: int
    request_pico_usd: int = 0
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What one attempt may cost at most.

    Attributes:
        agent: Who calls.
        base_pico_usd: Input and fees; None = no bound is known.
        output_pico_usd: One output token.
        base_tokens: Input tokens; None = no bound is known.
        output_tokens: Output tokens at most; None = nobody says.
        answers: Number of answers that are asked for; each may be that long.
        can_clamp: Whether the length of the answer can be limited.
        reason: Why a bound is not known.
        carried: Whether the attempt fetches what an earlier one asked for: that one's
            reservation stands.
    """

    agent: str = ""
    base_pico_usd: int | None = 0
    output_pico_usd: int = 0
    base_tokens: int | None = 0
    output_tokens: int | None = 0
    answers: int = 1
    can_clamp: bool = False
    reason: str = ""
    carried: bool = False

    def amount(self, output_tokens: int) -> Amount:
        """Return the bound where each answer has that many tokens at most."""
        output = output_tokens * self.answers
        return Amount(
            (self.base_pico_usd or 0) + output * self.output_pico_usd,
            (self.base_tokens or 0) + output,
        )


@dataclass(frozen=True, slots=True)
class Amount:
    """Money and tokens."""

    pico_usd: int = 0
    tokens: int = 0


NOTHING = Amount()


@dataclass(frozen=True, slots=True)
class Actual:
    """What an attempt did cost; None = unknown."""

    pico_usd: int | None
    tokens: int | None


@dataclass(slots=True, kw_only=True)
class Account:
    """One budget while the write lock is held: decisions are made on it, one after the other.

    Attributes:
        pk: The store's number.
        delta: What is to be added to its row: spent, reserved, doubtful and so on, by column.
    """

    pk: int
    project: str
    scope: Scope
    name: str
    limit_pico_usd: int | None
    limit_tokens: int | None
    spent_pico_usd: int = 0
    spent_tokens: int = 0
    reserved_pico_usd: int = 0
    reserved_tokens: int = 0
    doubtful_pico_usd: int = 0
    over_pico_usd: int = 0
    over_tokens: int = 0
    on_exhausted: OnExhausted = "pause"
    marked_percent: int = 0
    waiters: int = 0
    freed: bool = False
    delta: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The budget in one word."""
        return f"{self.scope}:{self.name}"

    def fits(self, amount: Amount, *, ever: bool = False) -> bool:
        """Return whether *amount* may be reserved now, or *ever* (when nothing is reserved)."""
        held = NOTHING if ever else Amount(self.reserved_pico_usd, self.reserved_tokens)
        dear = self.limit_pico_usd is not None and (
            self.spent_pico_usd + held.pico_usd + amount.pico_usd > self.limit_pico_usd
        )
        long = self.limit_tokens is not None and (
            self.spent_tokens + held.tokens + amount.tokens > self.limit_tokens
        )
        return not (dear or long)

    def longest(self, bound: Bound, wanted: int) -> int:
        """Return how many output tokens per answer fit now, *wanted* at most."""
        most = wanted
        if self.limit_pico_usd is not None and bound.output_pico_usd:
            room = self.limit_pico_usd - self.spent_pico_usd - self.reserved_pico_usd
            left = room - (bound.base_pico_usd or 0)
            most = min(most, left // (bound.output_pico_usd * bound.answers))
        elif not self.fits(bound.amount(0)):
            return 0
        if self.limit_tokens is not None:
            room = self.limit_tokens - self.spent_tokens - self.reserved_tokens
            most = min(most, (room - (bound.base_tokens or 0)) // bound.answers)
        return max(most, 0)

    def reserve(self, amount: Amount) -> None:
        """Hold *amount* for a call."""
        self._add(reserved_pico_usd=amount.pico_usd, reserved_tokens=amount.tokens)

    def settle(self, held: Amount, actual: Actual) -> None:
        """Turn what was held into what was spent; what is unknown is spent in full."""
        cost = held.pico_usd if actual.pico_usd is None else actual.pico_usd
        tokens = held.tokens if actual.tokens is None else actual.tokens
        self._add(
            reserved_pico_usd=-held.pico_usd,
            reserved_tokens=-held.tokens,
            spent_pico_usd=cost,
            spent_tokens=tokens,
            doubtful_pico_usd=held.pico_usd if actual.pico_usd is None else 0,
            over_pico_usd=max(0, cost - held.pico_usd),
            over_tokens=max(0, tokens - held.tokens),
        )
        self.freed = True

    def resolve(self, doubtful: Amount, actual: Actual) -> None:
        """Replace a bound that was counted as spent by what was billed after all."""
        self._add(
            spent_pico_usd=(actual.pico_usd or 0) - doubtful.pico_usd,
            spent_tokens=0 if actual.tokens is None else actual.tokens - doubtful.tokens,
            doubtful_pico_usd=-doubtful.pico_usd,
            over_pico_usd=max(0, (actual.pico_usd or 0) - doubtful.pico_usd),
            over_tokens=max(0, (actual.tokens or 0) - doubtful.tokens),
        )
        self.freed = True

    def book(self, actual: Actual, *, is_over: bool = True) -> None:
        """Count what was billed without a reservation."""
        cost = actual.pico_usd or 0
        self._add(
            spent_pico_usd=cost,
            spent_tokens=actual.tokens or 0,
            over_pico_usd=max(0, cost) if is_over else 0,
            over_tokens=(actual.tokens or 0) if is_over else 0,
        )
        self.freed = self.freed or cost < 0

    def newly_marked(self, *, exhausted: bool = False) -> int | None:
        """Return the highest soft mark that was just passed, once, or None."""
        shares = [100] if exhausted else []
        if self.limit_pico_usd:
            shares.append(self.spent_pico_usd * 100 // self.limit_pico_usd)
        if self.limit_tokens:
            shares.append(self.spent_tokens * 100 // self.limit_tokens)
        share = max(shares, default=0)
        mark = max((m for m in MARKS_PERCENT if m <= share), default=0)
        if mark <= self.marked_percent:
            return None
        self.marked_percent = mark
        return mark

    def _add(self, **more: int) -> None:
        for name, number in more.items():
            if number:
                setattr(self, name, getattr(self, name) + number)
                self.delta[name] = self.delta.get(name, 0) + number


@dataclass(frozen=True, slots=True)
class Granted:
    """The call may start; *amount* is to be held, *terms* go into its Started event."""

    amount: Amount
    terms: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """The call may not start now.

    Attributes:
        account: The budget that says so; None where no bound is known.
        detail: Why, in words.
        needs: What it would need.
        is_final: Whether code must see it; else the call waits.
    """

    account: Account | None
    detail: str
    needs: Amount
    is_final: bool


def decide(chain: Sequence[Account], bound: Bound) -> Granted | Refused:
    """Return whether a call may start under every budget of *chain*; nothing is changed.

    A call that would fit if nothing were held for others waits for them, whatever the policy:
    most of what is held comes back. Only then a budget is exhausted.
    """
    reason = _no_bound(chain, bound)
    if reason:
        return Refused(None, reason, NOTHING, is_final=True)
    wanted = CLAMPED_OUTPUT_TOKENS if bound.output_tokens is None else bound.output_tokens
    length = wanted
    for account in sorted(chain, key=lambda a: a.on_exhausted != "clamp"):
        amount = bound.amount(length)
        if account.fits(amount):
            continue
        can_clamp = account.on_exhausted == "clamp" and bound.can_clamp
        if account.fits(amount, ever=True) or not can_clamp:
            waits = account.fits(amount, ever=True) or account.on_exhausted == "pause"
            return Refused(account, _detail(account, amount), amount, is_final=not waits)
        length = account.longest(bound, length)
        shortest = min(LEAST_OUTPUT_TOKENS, wanted)
        if length < shortest:
            least = bound.amount(shortest)
            waits = account.fits(least, ever=True)
            return Refused(account, _detail(account, least), least, is_final=not waits)
    is_clamped = bound.output_tokens is None or length < wanted
    return Granted(bound.amount(length), {"max_output_tokens": length} if is_clamped else {})


def _no_bound(chain: Sequence[Account], bound: Bound) -> str:
    """Return why no bound is known where a budget of *chain* needs one, or ""."""
    limited = [a for a in chain if a.limit_pico_usd is not None or a.limit_tokens is not None]
    for account in limited:
        lacks_price = account.limit_pico_usd is not None and bound.base_pico_usd is None
        if lacks_price or bound.base_tokens is None:
            why = bound.reason or "its cost has no bound"
            return f"budget {account.label}: {why}"
    if bound.output_tokens is not None or not limited:
        return ""
    if bound.can_clamp and any(a.on_exhausted == "clamp" for a in limited):
        return ""
    return (
        f"budget {limited[0].label}: the length of the answer has no bound; "
        "set settings.max_output_tokens"
    )


def _detail(account: Account, needs: Amount) -> str:
    dear = account.limit_pico_usd is not None and (
        account.spent_pico_usd + account.reserved_pico_usd + needs.pico_usd > account.limit_pico_usd
    )
    if dear:
        assert account.limit_pico_usd is not None  # noqa: S101 -- dear says so
        left = account.limit_pico_usd - account.spent_pico_usd - account.reserved_pico_usd
        held = (
            f" beside ${_short(account.reserved_pico_usd)} held"
            if account.reserved_pico_usd
            else ""
        )
        return (
            f"budget {account.label} needs up to ${_short(needs.pico_usd, up=True)} and has "
            f"${_short(max(0, left))} left{held}"
        )
    limit = account.limit_tokens or 0
    left = limit - account.spent_tokens - account.reserved_tokens
    return f"budget {account.label} needs up to {needs.tokens} tokens and has {max(0, left)} left"


def _short(amount: int, *, up: bool = False) -> str:
    """Return dollars with six digits behind the point at most, rounded down or *up*."""
    micro = -(-amount // 10**6) if up else amount // 10**6
    text = f"{micro // 10**6}.{micro % 10**6:06d}".rstrip("0")
    whole, _, rest = text.partition(".")
    return f"{whole}.{rest:<02}" if len(rest) < 2 else text  # noqa: PLR2004 -- cents
