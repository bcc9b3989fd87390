"""Attempt → delay. Pure: the jitter's draw comes in as an argument."""

from __future__ import annotations

from datetime import timedelta

from agentflow.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failed activity is tried again.

    Attributes:
        max_attempts: Number of attempts in all, the first included; 1 = never retry.
        initial: Wait before the second attempt.
        factor: Number by which each further wait grows; a number of times, not seconds.
        maximum: Longest wait.
        jitter: Share of the wait, 0 to 1, that is drawn at random and taken off.
        non_retryable: Names of exception types that fail at once.
    """

    max_attempts: int = 3
    initial: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    maximum: timedelta = timedelta(seconds=60)
    jitter: float = 0.25
    non_retryable: tuple[str, ...] = ()


NO_RETRY = RetryPolicy(max_attempts=1)
# A model call is worth more patience than a tool: rate limits last minutes.
MODEL_RETRY = RetryPolicy(max_attempts=6, initial=timedelta(seconds=0.5))


def delay_seconds(
    policy: RetryPolicy,
    *,
    attempt: int,
    draw: float,
    at_least_seconds: float | None = None,
) -> float | None:
    """Return the seconds to wait after failed *attempt* (from 1), or None: no more tries.

    Args:
        policy: The call's policy.
        attempt: The attempt that has just failed, from 1.
        draw: A random number in [0, 1).
        at_least_seconds: The other side's own wait (Retry-After), in seconds.

    Source:
        Exponential back-off with subtractive jitter, as both SDKs do it:
        min(maximum, initial x factor^(attempt-1)) x (1 - jitter x draw).

    >>> delay_seconds(RetryPolicy(jitter=0), attempt=2, draw=0.5)
    2.0
    """
    if attempt >= policy.max_attempts:
        return None
    initial = policy.initial.total_seconds()
    wait = min(policy.maximum.total_seconds(), initial * policy.factor ** (attempt - 1))
    wait *= 1 - policy.jitter * draw
    return max(wait, at_least_seconds or 0.0)
