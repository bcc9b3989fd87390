"""Every error that agentflow raises, each with a stable code and a hint.

    AgentflowError
    ├── Fail                        raised by your workflow: ends the run as failed
    ├── UsageError                  the call is wrong; nothing was written
    │   ├── UnknownWorkflowError · UnknownModelError
    │   ├── InputMismatchError      the id exists with another workflow or input
    │   ├── DuplicateKeyError       key="…" was used twice in one run
    │   ├── ForbiddenCallError      workflow code did I/O or read the world
    │   ├── SettingsError           a setting has no meaning
    │   ├── RunEndedError           a signal to a run that has ended
    │   ├── InputError              the given input is no JSON or does not fit the workflow
    │   ├── LoadError               a module or file of workflows cannot be imported
    │   ├── WebhookError            a webhook is not signed, old, or about nothing
    │   └── ReportError             a provider's usage or cost report cannot be used
    │       ├── ReportTruncatedError    a page, or the end of a file, is missing
    │       └── ReportMismatchError     it is another provider's or organisation's
    ├── NotFoundError               no such run, approval or query
    │   └── AmbiguousIdError        more than one run begins with that prefix
    ├── PayloadError                a value cannot be stored or read back
    │   ├── EncodeError · DecodeError · PayloadTooLargeError
    │   └── PayloadErased           the body was erased; its digest remains
    ├── HistoryError                a history is not what it must be
    │   ├── CorruptHistoryError     altered row, missing tail, broken link
    │   ├── UnknownEventError       written by a newer version
    │   └── HistoryPrunedError      retention took it; the run's row and ledger are left
    ├── ReplayMismatchError         code asked for something other than the history holds
    ├── RunFailedError              result() of a run that failed
    │   └── RunCancelledError       result() of a run that was cancelled
    ├── RunInterruptedError         Ctrl-C: the run is kept and can be resumed
    ├── RunParkedError              result() of a run that a person must mend or release
    ├── ActivityError               an activity failed for good; .failure has the recorded data
    │   ├── InDoubtError            its outcome is unknown and the policy says fail
    │   ├── ApprovalDeniedError     a person said no
    │   ├── ActivityTimeoutError    an attempt or the call took too long
    │   ├── MaxTurnsError           the agent did not finish within max_turns
    │   ├── ToolArgumentsError      the model called a tool with arguments that do not fit
    │   ├── OutputError             the model's answer does not fit output_type
    │   ├── ModelRefusedError       the model, or its vendor's filter, said no
    │   ├── AnswerCutError          the answer was cut at max_output_tokens
    │   └── LimitError              the agent passed one of its limits
    ├── NonRetryableError           raised by your activity: do not try again
    ├── RetryLater                  raised by your activity: try again after a while
    ├── ProviderError               a model vendor answered with an error
    │   └── ResponseLostError       it has lost an answer that it was working on
    ├── StoreError                  the database did not do it
    │   ├── FencedError             another worker owns the run now
    │   ├── DatabaseLockedError · DiskFullError · SchemaVersionError
    │   ├── ServerGoneError         the database server cannot be reached
    │   ├── DatabaseRightsError     the database does not let this user do it
    │   └── OwnedElsewhereError     another process is the worker of this file
    └── BudgetError                 a budget refused the call

`Evicted` derives from BaseException: it is control flow, not an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class AgentflowError(Exception):
    """Base of all errors: one line, a stable code and a hint.

    Args:
        message: What is wrong, in one line.
        hint: What to do about it; overrides the class's default.
        data: Facts for programs, JSON values only.
    """

    code: ClassVar[str] = "AF000"
    default_hint: ClassVar[str] = ""

    def __init__(
        self, message: str, *, hint: str = "", data: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.data: dict[str, object] = dict(data or {})
        self.failure: object = None  # the recorded history.failure.Failure, if it came from one


class Fail(AgentflowError):  # noqa: N818 -- reads as a verb: `raise Fail("…")`
    """Raise in a workflow to end the run as failed.

    Args:
        message: Why the run failed; shown by `run.result()` and the CLI.
        hint: What to do about it.
        data: JSON values that readers of the failure need.
    """

    code = "AF100"


class UsageError(AgentflowError):
    """The call is wrong as written; nothing was recorded."""

    code = "AF200"


class UnknownWorkflowError(UsageError):
    """No workflow of that name is registered in this process."""

    code = "AF201"
    default_hint = "Import the module that defines it before starting or resuming the run."


class UnknownModelError(UsageError):
    """A model name has no provider, or the provider refused it."""

    code = "AF203"
    default_hint = "Write provider:model, such as openai:gpt-6-luna or anthropic:claude-sonnet-5-5."


class InputMismatchError(UsageError):
    """The id belongs to a run of another workflow or with another input."""

    code = "AF204"
    default_hint = "Use another id, or the same input."


class DuplicateKeyError(UsageError):
    """An explicit key was used twice in one run."""

    code = "AF205"
    default_hint = "Make the key unique, for example by adding the item's id to it."


class ForbiddenCallError(UsageError):
    """Workflow code reached outside; that must happen in an activity."""

    code = "AF206"
    default_hint = "Move it into an @activity or @tool function."


class SettingsError(UsageError):
    """A setting has no meaning or is missing."""

    code = "AF207"


class RunEndedError(UsageError):
    """The run has ended and takes no more messages."""

    code = "AF208"


class InputError(UsageError):
    """The given input is no JSON, or it does not fit the workflow."""

    code = "AF209"


class LoadError(UsageError):
    """A module or a file that should define workflows cannot be imported."""

    code = "AF210"


class WebhookError(UsageError):
    """A webhook is not from the vendor that it claims to be from, is old, or is about nothing."""

    code = "AF211"
    default_hint = "Answer it with status 400; check the secret (OPENAI_WEBHOOK_SECRET)."


class ReportError(UsageError):
    """A provider's usage or cost report cannot be read."""

    code = "AF220"
    default_hint = "Save the answer of the admin API as it came, as JSON."


class ReportTruncatedError(ReportError):
    """A page of a report, or the end of its file, is missing."""

    code = "AF221"
    default_hint = "Fetch all pages (`next_page`) and give all files."


class ReportMismatchError(ReportError):
    """The report is of another provider, organisation or account than the ledger's calls."""

    code = "AF222"


class NotFoundError(AgentflowError):
    """There is no such run, approval or query."""

    code = "AF300"


class AmbiguousIdError(NotFoundError):
    """More than one run begins with that prefix."""

    code = "AF301"
    default_hint = "Give more characters of the id."


class PayloadError(AgentflowError):
    """A value cannot be stored or read back."""

    code = "AF400"


class EncodeError(PayloadError):
    """A value has no JSON form; the message names its path."""

    code = "AF401"
    default_hint = "Use JSON values, dataclasses or pydantic models; annotate the function."


class DecodeError(PayloadError):
    """Recorded JSON does not fit the annotated type."""

    code = "AF402"
    default_hint = "Keep the type able to read what it wrote (a new field needs a default)."


class PayloadTooLargeError(PayloadError):
    """A value is larger than the limit."""

    code = "AF403"
    default_hint = "Store large data elsewhere and pass its name; or raise max_payload_bytes."


class PayloadErased(PayloadError):  # noqa: N818 -- a state of the payload
    """The body was erased; the history still verifies by its digest."""

    code = "AF404"


class HistoryError(AgentflowError):
    """A history is not what it must be."""

    code = "AF500"


class CorruptHistoryError(HistoryError):
    """An altered row, a missing tail or a broken link."""

    code = "AF501"
    default_hint = "Run `agentflow verify RUN`; restore the database from a backup."


class HistoryPrunedError(HistoryError):
    """Retention took it; the run's row and its ledger are left."""

    code = "AF503"
    default_hint = "`agentflow import FILE` brings it back from an archive or an export."


class UnknownEventError(HistoryError):
    """An event of a kind or version that this agentflow does not know."""

    code = "AF502"
    default_hint = "Upgrade agentflow in this process."


class ReplayMismatchError(AgentflowError):
    """Code asked for something other than the history holds."""

    code = "AF600"
    default_hint = (
        "Restore the old code, guard the change with patched(), or "
        "`agentflow unpause RUN --on-mismatch reuse|recall`."
    )


class RunFailedError(AgentflowError):
    """The run failed; `data` has the recorded failure."""

    code = "AF700"


class RunCancelledError(RunFailedError):
    """The run was cancelled."""

    code = "AF701"


class RunInterruptedError(AgentflowError):
    """Somebody pressed Ctrl-C, or the process got SIGTERM; the run is kept and can be resumed."""

    code = "AF703"


class RunParkedError(AgentflowError):
    """The run waits for a person: mended code, a matching version, or a release."""

    code = "AF702"
    default_hint = "Mend the code and run it again: nothing that is recorded is paid twice."


class ActivityError(AgentflowError):
    """An activity failed for good.

    Args:
        message: The last attempt's error in one line.
        hint: What to do about it.
        data: The recorded failure: type, message, data, cause, traceback.
    """

    code = "AF800"


class InDoubtError(ActivityError):
    """The outcome of an attempt is unknown, and the policy says fail, or `reconcile=` failed."""

    code = "AF801"


class ApprovalDeniedError(ActivityError):
    """A person denied the call."""

    code = "AF802"


class ActivityTimeoutError(ActivityError):
    """An attempt, its heartbeat or the whole call took too long."""

    code = "AF803"


class MaxTurnsError(ActivityError):
    """The agent did not finish within `max_turns`."""

    code = "AF804"
    default_hint = "Raise max_turns, or give the agent a smaller task."


class ToolArgumentsError(ActivityError):
    """The model called a tool with arguments that do not fit its schema.

    The message is written for the model: a line per misfit, as ``path: what is wrong; got …``.
    """

    code = "AF805"
    default_hint = "Send the message back as the tool's error: models mend their calls."


class OutputError(ActivityError):
    """The model's answer does not fit the agent's `output_type`; the message is for the model."""

    code = "AF806"
    default_hint = "Send the message back as the next user message, or loosen the type."


class ModelRefusedError(ActivityError):
    """The model declined to answer, or its vendor's filter stopped the answer."""

    code = "AF807"
    default_hint = "Ask differently; another model may answer."


class AnswerCutError(ActivityError):
    """The answer was cut off at the output limit, so that it is not whole."""

    code = "AF808"
    default_hint = "Raise settings.max_output_tokens, or ask for a shorter answer."


class LimitError(ActivityError):
    """A run or an agent passed one of its limits; `data`: ``limit``, ``allowed``, ``used``."""

    code = "AF809"
    default_hint = "Raise the limit, or give it a smaller task; catch the error to go on without."


class NonRetryableError(AgentflowError):
    """Raise in an activity: the call fails now, whatever its retry policy says."""

    code = "AF810"


class RetryLater(AgentflowError):  # noqa: N818 -- reads as a verb: `raise RetryLater(…)`
    """Raise in an activity: try again, not before *after_seconds*.

    Args:
        message: Why.
        after_seconds: Shortest wait before the next attempt, in seconds.
    """

    code = "AF811"

    def __init__(self, message: str, *, after_seconds: float) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class ProviderError(AgentflowError):
    """A model vendor answered with an error.

    Args:
        message: What the vendor said, in one line.
        retryable: Whether the same request may succeed later.
        retry_after_seconds: The vendor's own wait in seconds, if it named one.
        status: HTTP status, if there was one.
        hint: What to do about it.
        request_id: The vendor's id of the request.
        sent: Whether the request may have reached the vendor (and may be billed).

    Attributes:
        in_flight: Whether the vendor still works on the answer: its handle is known, and the next
            attempt fetches it instead of asking again.
    """

    code = "AF820"
    in_flight: bool = False

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        retry_after_seconds: float | None = None,
        status: int | None = None,
        hint: str = "",
        request_id: str | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message, hint=hint, data={"status": status, "request_id": request_id})
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.request_id = request_id
        self.sent = sent


class ResponseLostError(ProviderError):
    """The vendor no longer knows an answer that it was working on, or will never begin it."""

    code = "AF821"


class StoreError(AgentflowError):
    """The database did not do it."""

    code = "AF900"


class FencedError(StoreError):
    """Another worker owns the run now; this one must forget it."""

    code = "AF901"


class DatabaseLockedError(StoreError):
    """The database stayed locked by another process."""

    code = "AF902"
    default_hint = "Close programs that hold the file open (a database browser, a backup)."


class DiskFullError(StoreError):
    """No space is left for the database."""

    code = "AF903"
    default_hint = "Free some space; the run goes on from where it was."


class SchemaVersionError(StoreError):
    """A newer agentflow has changed the database beyond what this one can use."""

    code = "AF904"
    default_hint = "Upgrade agentflow in this environment."


class OwnedElsewhereError(StoreError):
    """Another process is the worker of this database file."""

    code = "AF905"
    default_hint = "It goes on there; stop that process to continue here."


class ServerGoneError(StoreError):
    """The database server cannot be reached, or has gone away."""

    code = "AF906"
    default_hint = "Runs wait, and go on when it is back; see that it is up and can be reached."


class DatabaseRightsError(StoreError):
    """The database does not let this user do it: a wrong password, a missing grant."""

    code = "AF907"
    default_hint = "See docs/deploy.md for the rights that workers and dashboards need."


class BudgetError(AgentflowError):
    """A budget refused the call."""

    code = "AF950"


class Evicted(BaseException):
    """Thrown into a waiting workflow that leaves memory; it is replayed later."""
