"""Ask the outside world what happened to a doubtful attempt."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from agentflow.codec import Parts
from agentflow.engine.commands import Arrival, Reconcile, StartAttempt
from agentflow.errors import InDoubtError
from agentflow.history import events as ev
from agentflow.history.failure import encode_failure
from agentflow.sync_point import sync_point
from agentflow.worker.attempts import Attempt, AttemptHouse, RunScope


async def reconcile(
    command: Reconcile,
    house: AttemptHouse,
    scope: RunScope,
    deliver: Callable[[Arrival], None],
    again: Callable[[Reconcile], None],
) -> None:
    """Call the activity's `reconcile` with the call's arguments and deliver what it says.

    It returns the result where the call happened, and raises `LookupError` where it did not: then
    the call runs again. Any other exception fails the call with `InDoubtError`: a `KeyError` may
    come from a bug, and what is repeated because of one may be a payment.
    """
    call = command.call
    asked = call.activity_call
    assert asked is not None  # noqa: S101 -- only asked calls have a policy
    activity = asked.activity
    ask = activity.options.reconcile
    assert ask is not None  # noqa: S101 -- the policy says so
    attempt = Attempt(house, StartAttempt(call, command.attempt, {}), scope, deliver)
    try:
        args, kwargs = activity.call_arguments(attempt.arguments(activity))
        names = inspect.signature(ask).parameters
        for name in activity.context_names:
            if name in names:
                kwargs[name] = attempt.context
        sync_point("reconcile.before_call")
        result = ask(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        sync_point("reconcile.after_call")
        deliver(attempt.completed(activity, result))
    except Exception as error:  # noqa: BLE001 -- every failure is data
        if type(error) is LookupError:
            again(command)
            return
        parts = Parts()
        unknown = InDoubtError(
            f"{activity.name}: the outcome of attempt {command.attempt} is unknown; reconcile= "
            f"failed: {type(error).__name__}: {error}",
            hint="Look whether it happened before you retry the run: a retry calls it again.",
        )
        failure, payload = encode_failure(unknown, house.codec, parts)
        event = ev.ActivityFailed(key=call.key, payload=payload, attempt=command.attempt)
        deliver(Arrival(event=event, value=failure, has_value=True, parts=parts))
