"""What is about no single run: queues and their limits, and what vendors tell us."""

from __future__ import annotations

from collections.abc import Mapping

from agentflow.client.run import Seams
from agentflow.client.webhook import verified_ref
from agentflow.errors import UsageError
from agentflow.stored import QueueLimit, QueueScope, QueueState, RateLimit

DEFAULT_QUEUE = "default"
_MOST_PRIORITY = 1_000_000
_KEY_CHARACTERS = 255
_LANE_MARK = "\x1f"  # between project and key, where the store keeps both as one


class Operator:
    """The part of a client that is about no single run."""

    def __init__(self, seams: Seams) -> None:
        self._seams = seams

    async def webhook(
        self, headers: Mapping[str, str], body: bytes | str, *, secret: str | None = None
    ) -> bool:
        """Take a vendor's webhook in, so that an answer that waits is fetched at once.

        Call it where your web application receives OpenAI's ``batch.*`` and ``response.*`` events.
        Nothing of the body is believed but the id; the answer is fetched from the vendor.

        Args:
            headers: The request's headers.
            body: The request's body as it came.
            secret: The endpoint's signing secret; the variable OPENAI_WEBHOOK_SECRET by default.

        Returns:
            Whether anybody here waits for that answer.

        Raises:
            WebhookError: it is not signed with the secret, too old, or about nothing.
        """
        seams = self._seams
        ref = verified_ref(
            headers,
            body.encode() if isinstance(body, str) else body,
            secret=seams.webhook_secret if secret is None else secret,
            now_ms=seams.clock.now_ms(),
        )
        return await seams.store.hurry(ref)

    async def set_queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        per_key: int | None = None,
        scope: QueueScope = "queue",
    ) -> None:
        """Limit how many runs of a queue or a workflow are active at once, on all workers.

        What is set here outranks settings and code. Runs that are active stay so.

        Args:
            name: The queue's name, or the workflow's.
            concurrency: Number of runs; 0 holds the queue, None = any number.
            per_key: Number of runs of each concurrency key; None = any number.
            scope: ``queue`` or ``workflow``.

        Raises:
            UsageError: a number is negative, or the scope is unknown.
        """
        if scope not in {"queue", "workflow"}:
            msg = f"scope {scope!r} is none of queue, workflow"
            raise UsageError(msg)
        limit = QueueLimit(
            scope=scope,
            name=checked_name(name),
            concurrency=checked_count("concurrency", concurrency),
            per_key=checked_count("per_key", per_key),
        )
        await self._seams.store.set_queue(limit)

    async def set_rate(
        self,
        model: str,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        key: str = "",
    ) -> None:
        """Limit how often a model is asked, in any minute, on all workers together.

        Calls that come too fast wait; it costs them no attempt.

        Args:
            model: ``provider:name``, or ``provider:*`` for all models of a provider together.
            requests_per_minute: Number of requests in any 60 seconds; None = any number.
            tokens_per_minute: Number of tokens in any 60 seconds, input and output together,
                estimated until the answer says; None = any number.
            key: A concurrency key; ``""`` = all calls together, ``*`` = each key by itself.

        Raises:
            UsageError: a number is negative, or the model is not written ``provider:name``.
        """
        provider, colon, name = model.partition(":")
        if not (provider and colon and name):
            msg = f"{model!r} is not written provider:name"
            raise UsageError(msg, hint="Write openai:gpt-6, or openai:* for all of its models.")
        limit = RateLimit(
            model=model,
            key=checked_key(key),
            requests_per_minute=checked_count("requests_per_minute", requests_per_minute),
            tokens_per_minute=checked_count("tokens_per_minute", tokens_per_minute),
        )
        await self._seams.store.set_rate(limit)

    async def rates(self) -> list[RateLimit]:
        """Return rates with what they have let through in the last minute.

        Returns:
            The rates by model and key.
        """
        return await self._seams.store.rates()

    async def queues(self) -> list[QueueState]:
        """Return queues with what is due, running and waiting in them.

        Returns:
            The queues, and the workflows that have limits, by name.
        """
        return await self._seams.store.queues()


def checked_name(name: str) -> str:
    """Return the name of a queue.

    Raises:
        UsageError: it is empty, or too long to be a name.
    """
    if not name or len(name) > _KEY_CHARACTERS:
        msg = f"{name[:40]!r} is no name of a queue"
        raise UsageError(msg, hint=f"Use 1 to {_KEY_CHARACTERS} characters.")
    return name


def checked_count(what: str, number: int | None) -> int | None:
    """Return a limit.

    Raises:
        UsageError: it is no whole number, or negative.
    """
    if number is None:
        return None
    if not _is_number(number) or number < 0:
        msg = f"{what} is {number!r}"
        raise UsageError(msg, hint="Use a whole number, zero or more; None = any number.")
    return number


def checked_priority(priority: int) -> int:
    """Return a priority.

    Raises:
        UsageError: it is no whole number, or beyond a million.
    """
    if not (_is_number(priority) and abs(priority) <= _MOST_PRIORITY):
        msg = f"priority is {priority!r}"
        raise UsageError(msg, hint=f"Use a whole number up to {_MOST_PRIORITY:,}; 0 is ordinary.")
    return priority


def checked_key(key: str) -> str:
    """Return a concurrency key.

    Raises:
        UsageError: it is too long, or has a control character that the store needs.
    """
    if len(key) > _KEY_CHARACTERS or _LANE_MARK in key:
        msg = f"{key[:40]!r} is no concurrency key"
        raise UsageError(
            msg, hint=f"Use the id of a user or a tenant, {_KEY_CHARACTERS} characters."
        )
    return key


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
