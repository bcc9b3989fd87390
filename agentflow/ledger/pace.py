"""Rates: how many requests and tokens a minute, in any minute. Pure: the time comes in.

A plain token bucket that is full lets twice its rate through in the first minute. So what was let
through is kept by the second, and a request goes where it and all of the last 61 seconds that
began (the 60 that a window can cover, whole, and the one that it may cut) stay within the limit:
then every window of 60 seconds does, wherever it begins. That is so where it is counted; a vendor
counts what arrives. So two more seconds are kept, and what was let through may be sent within two
seconds, or has to ask again: then no window of the vendor's has more either.
"""

from __future__ import annotations

import json
from dataclasses import field

from agentflow.dataclass import dataclass

WINDOW_SECONDS = 60
PERMIT_SECONDS = 2  # within which what was let through is sent
KEPT_SECONDS = WINDOW_SECONDS + PERMIT_SECONDS
LEAST_SHARE = 50  # of 1,000: a vendor that turns everything down is still asked now and then
EASE_MS, EASE_SHARE = 60_000, 100  # each minute without a refusal a tenth comes back
ONE_REFUSAL_MS = 5_000  # requests that were in flight together are refused together
# What waits for tokens asks again before the estimates are over, as most calls take fewer: after so
# many seconds, and so many of all that wait in each of them.
AGAIN_SECONDS, AGAIN_AT_ONCE = 5, 10


@dataclass(slots=True, kw_only=True)
class Pace:
    """One rate and what it has let through.

    Attributes:
        requests: Number of requests a minute; None = any number.
        tokens: Number of tokens a minute, input and output; None = any number.
        slots: [second, requests, tokens] of what was let through, oldest first.
        promised: The same of what was told to come back then; only a guess of the next free time.
        paused_until_ms: Nothing goes before: the vendor said so.
        share: Part of the rate that is used now, of 1,000; halved when the vendor refuses.
        eased_at_ms: When the share was last changed.
    """

    requests: int | None = None
    tokens: int | None = None
    slots: list[list[int]] = field(default_factory=list)
    promised: list[list[int]] = field(default_factory=list)
    paused_until_ms: int = 0
    share: int = 1_000
    eased_at_ms: int = 0

    def _limit(self, of: int | None) -> int | None:
        return None if of is None else (max(1, of * self.share // 1_000) if of else 0)

    def _second(self, now_ms: int) -> int:
        """Return the second that counts: clocks of several machines may go back a little."""
        return max(now_ms // 1_000, self.slots[-1][0] if self.slots else 0)

    def ask(self, now_ms: int, tokens: int) -> int | None:
        """Return None where a request may go now, else when to ask again, in milliseconds.

        Args:
            now_ms: The time.
            tokens: How many tokens it will take, as far as is known.
        """
        second = self._second(now_ms)
        self._forget(second)
        self._ease(now_ms)
        after = self._free(self.slots, tokens)
        if after is None and now_ms >= self.paused_until_ms:
            return None
        waiting = sorted([*self.slots, *self.promised])
        later = self._free(waiting, tokens)
        if later is not None and self.tokens:
            again = second + AGAIN_SECONDS + len(self.promised) // AGAIN_AT_ONCE
            later = min(later, max(again, self._free(waiting, 0) or 0))
        at = max(second + 1, later or 0, -(-self.paused_until_ms // 1_000))
        self.promised.append([at, 1, tokens])
        return at * 1_000

    def _free(self, slots: list[list[int]], tokens: int) -> int | None:
        """Return the second in which enough of *slots* is over, or None: there is room."""
        most_requests, most_tokens = self._limit(self.requests), self._limit(self.tokens)
        requests, held = sum(s[1] for s in slots), sum(s[2] for s in slots)
        wanted = tokens if most_tokens is None else min(tokens, most_tokens)

        def fits() -> bool:
            few = most_requests is None or requests + 1 <= most_requests
            return few and (most_tokens is None or held + wanted <= most_tokens)

        if fits():
            return None
        at = 0
        for slot in slots:
            requests, held = requests - slot[1], held - slot[2]
            at = slot[0] + KEPT_SECONDS + 1
            if fits():
                return at
        return max(at, (slots[-1][0] if slots else 0) + KEPT_SECONDS)  # a limit of nothing

    def take(self, now_ms: int, tokens: int) -> int:
        """Let a request through and return the second that it is counted in."""
        second = self._second(now_ms)
        self._add(second, 1, tokens)
        return second

    def _add(self, second: int, requests: int, tokens: int) -> None:
        if not self.slots or self.slots[-1][0] != second:
            self.slots.append([second, 0, 0])
        self.slots[-1][1] += requests
        self.slots[-1][2] += tokens

    def settle(self, now_ms: int, second: int, estimate: int, actual: int) -> None:
        """Replace an estimate by what a request has really taken.

        What it took less is given back where it was counted; what it took more counts from now.
        """
        if actual > estimate:
            self._add(self._second(now_ms), 0, actual - estimate)
            return
        for slot in self.slots:
            if slot[0] == second:
                slot[2] -= min(slot[2], estimate - actual)

    def turned_down(self, now_ms: int, until_ms: int) -> None:
        """Take note that the vendor refused a request: nobody asks before *until_ms*."""
        self.paused_until_ms = max(self.paused_until_ms, until_ms)
        self._ease(now_ms)
        if now_ms - self.eased_at_ms >= ONE_REFUSAL_MS or self.share == 1_000:  # noqa: PLR2004 -- all
            self.share = max(LEAST_SHARE, self.share // 2)
            self.eased_at_ms = now_ms

    def _ease(self, now_ms: int) -> None:
        steps = max(0, now_ms - self.eased_at_ms) // EASE_MS
        if self.share < 1_000 and steps:  # noqa: PLR2004 -- all of it
            self.share = min(1_000, self.share + EASE_SHARE * steps)
            self.eased_at_ms += steps * EASE_MS

    def _forget(self, second: int) -> None:
        self.slots = [slot for slot in self.slots if slot[0] >= second - KEPT_SECONDS]
        self.promised = [slot for slot in self.promised if slot[0] > second]

    def text(self) -> str:
        """Return what `read` needs beside the limits."""
        kept = [self.slots, self.promised, self.paused_until_ms, self.share, self.eased_at_ms]
        return json.dumps(kept, separators=(",", ":"))


def read(text: str, requests: int | None, tokens: int | None) -> Pace:
    """Return the pace of what `Pace.text` has kept, under limits that may have changed."""
    pace = Pace(requests=requests, tokens=tokens)
    if text:
        kept = json.loads(text)
        pace.slots, pace.promised, pace.paused_until_ms, pace.share, pace.eased_at_ms = kept
    return pace
