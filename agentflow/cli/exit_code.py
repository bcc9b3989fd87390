"""What the shell is told: one number for each way a command can end."""

from __future__ import annotations

from enum import IntEnum

from agentflow.errors import (
    AgentflowError,
    BudgetError,
    FencedError,
    HistoryError,
    NotFoundError,
    OwnedElsewhereError,
    PayloadError,
    ReplayMismatchError,
    RunInterruptedError,
    StoreError,
    UsageError,
)


class ExitCode(IntEnum):
    """Exit codes, the same for every command."""

    DONE = 0
    FAILED = 1  # the run failed, or its code must be mended; `check` and `verify` found something
    USAGE = 2
    NOT_FOUND = 3
    WAITING = 4  # for an approval, a signal, a far timer, an operator
    BUDGET = 5
    MISMATCH = 6  # the code and the history disagree
    OWNED = 7  # another process is the worker
    DATABASE = 8
    BUG = 70  # EX_SOFTWARE of sysexits.h: agentflow itself is wrong
    INTERRUPTED = 130  # 128 + SIGINT, as shells count
    PIPE = 141  # 128 + SIGPIPE: nobody reads the output any more


# The first class that fits decides.
_BY_ERROR: tuple[tuple[type[AgentflowError], ExitCode], ...] = (
    (UsageError, ExitCode.USAGE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (RunInterruptedError, ExitCode.INTERRUPTED),
    (OwnedElsewhereError, ExitCode.OWNED),
    (FencedError, ExitCode.OWNED),
    (StoreError, ExitCode.DATABASE),
    (HistoryError, ExitCode.DATABASE),
    (ReplayMismatchError, ExitCode.MISMATCH),
    (BudgetError, ExitCode.BUDGET),
    (PayloadError, ExitCode.USAGE),
)


def exit_code_of(error: AgentflowError) -> ExitCode:
    """Return the exit code that says what *error* means."""
    return next((code for cls, code in _BY_ERROR if isinstance(error, cls)), ExitCode.FAILED)
