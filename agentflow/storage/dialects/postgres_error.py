"""What PostgreSQL's errors mean here: https://www.postgresql.org/docs/current/errcodes-appendix.html."""

from __future__ import annotations

import errno

import psycopg

from agentflow.errors import (
    DatabaseLockedError,
    DatabaseRightsError,
    DiskFullError,
    ServerGoneError,
    StoreError,
)
from agentflow.storage.dialect import driver_error
from agentflow.storage.dialects.postgres_url import Address

# Two transactions were in each other's way: the same again may succeed.
BUSY = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available: lock_timeout
    "57014",  # query_canceled: statement_timeout
}
# The server is going, coming, or full; class 08 is the way to it.
GONE = {
    "57P01",  # admin_shutdown, pg_terminate_backend
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "57P05",  # idle_session_timeout
    "25P03",  # idle_in_transaction_session_timeout
    "53300",  # too_many_connections
}
# A pooler gave us a connection that does not know our prepared statement, or knows it already.
POOLED = {"26000", "42P05"}
RIGHTS = {"28000", "28P01", "42501", "0P000", "3D000", "3F000"}
READ_ONLY = {"25006"}
FULL = {"53100", "53400"}
DAMAGED = {"XX001", "XX002", "58030"}


def code_of(error: BaseException) -> str:
    """Return the SQLSTATE; "" where the server said nothing."""
    return getattr(driver_error(error), "sqlstate", None) or ""


def is_busy(error: BaseException) -> bool:
    """Return whether another transaction was in the way."""
    return code_of(error) in BUSY


def is_pooled(error: BaseException) -> bool:
    """Return whether a pooler has changed the connection between two transactions."""
    return code_of(error) in POOLED


def is_gone(error: BaseException) -> bool:
    """Return whether the connection is gone: nobody knows what of the transaction was done."""
    cause = driver_error(error)
    if not isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    code = code_of(error)
    if code:
        return code in GONE or code.startswith("08")
    return not _is_refused(str(cause))


def _is_refused(said: str) -> bool:
    """Return whether it was the server that refused a connection: psycopg has no code then."""
    return "connection failed" in said and any(
        words in said
        for words in (
            "password authentication failed",
            "no pg_hba.conf entry",
            "does not exist",
            "permission denied",
            "no password supplied",
            "not permitted to log in",
        )
    )


def store_error(error: BaseException, where: Address) -> StoreError | None:
    """Return what an error of the database means; None where it is not the database's fault."""
    cause = driver_error(error)
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return DiskFullError(f"no space is left here, for {where.shown}")
    if not isinstance(cause, psycopg.Error):
        return None
    code, said = code_of(error), first_line(cause)
    if code in BUSY:
        msg = f"another transaction on {where.shown} was in the way: {said}"
        return DatabaseLockedError(msg, hint="See pg_stat_activity for who holds the lock.")
    if code in POOLED:
        hint = "Use the pooler's session mode, or connect to the server itself."
        return StoreError(f"a pooler at {where.shown} loses prepared statements", hint=hint)
    if code in FULL:
        return DiskFullError(f"{where.shown} has no space left: {said}")
    if code in READ_ONLY:
        hint = "Connect to the primary: this is a replica, or default_transaction_read_only is on."
        return StoreError(f"{where.shown} can only be read", hint=hint)
    if code == "3D000" or ('database "' in said and "does not exist" in said):
        hint = "Create it: createdb NAME. agentflow makes its tables by itself."
        return DatabaseRightsError(f"{where.shown} has no such database: {said}", hint=hint)
    if code in RIGHTS or (not code and _is_refused(str(cause))):
        return DatabaseRightsError(f"{where.shown} refuses: {said}")
    if code in DAMAGED:
        hint = "See the server's log; restore it from a backup."
        return StoreError(f"{where.shown} is damaged: {said}", hint=hint)
    if code == "53300":
        hint = "Raise max_connections, or run fewer workers: each takes up to 7 connections."
        return ServerGoneError(f"{where.shown} has no connection left: {said}", hint=hint)
    if is_gone(error):
        return ServerGoneError(f"{where.shown} cannot be reached: {said}")
    return None


def first_line(error: BaseException) -> str:
    """Return what the server said, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("connection failed: ") if lines else type(error).__name__
