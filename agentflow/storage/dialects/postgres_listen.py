"""NOTIFY as a hint: a thread with a connection of its own tells others, and is told.

The hint is never part of a transaction that writes (that would halve what the database can do),
is sent at most every few milliseconds however much is written, and may be lost: whoever waits
looks for himself now and then.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

import psycopg

from agentflow.storage.dialect import Wake
from agentflow.storage.dialects.postgres_connection import PatientConnection

REST_SECONDS = 0.02  # between two hints
RETRY_SECONDS = 1.0  # after the connection was lost
_LOG = logging.getLogger(__name__)


class Listener:
    """Sends and receives hints on one channel.

    Args:
        connect: Returns a connection in autocommit mode.
        channel: The channel's name, a plain word.
        wake: Called, in the thread, when another process has told something.
    """

    def __init__(self, connect: Callable[[], PatientConnection], channel: str, wake: Wake) -> None:
        self._connect = connect
        self._channel = channel
        self._wake = wake
        self._thread = threading.Thread(target=self._work, name="agentflow-listen", daemon=True)
        self._news = threading.Event()
        self._closing = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._told_at = 0.0
        self._heard = False
        self._me = 0

    def start(self) -> None:
        """Start the thread; that it cannot connect is no error: a hint is missing, nothing else."""
        self._thread.start()

    def tell(self) -> None:
        """Have others told, soon; from any thread."""
        if not self._news.is_set():
            self._news.set()
            self._nudge()

    def _nudge(self) -> None:
        try:
            os.write(self._writer, b".")
        except BlockingIOError:
            return  # it is awake

    def close(self) -> None:
        """Stop the thread and close the connection."""
        self._closing.set()
        self._nudge()
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                with self._connect() as conn:
                    conn.add_notify_handler(self._hear)
                    conn.execute("SET synchronous_commit = off")
                    self._me = conn.pgconn.backend_pid
                    if not conn.local:  # a pooler would have another client listen
                        conn.execute(f"LISTEN {self._channel}")
                    self._wake()  # what was told before is not heard
                    self._serve(conn)
            except Exception as e:  # noqa: BLE001 -- polling goes on without hints
                _LOG.debug("no hints for a while", extra={"error": type(e).__name__})
                self._closing.wait(RETRY_SECONDS)

    def _serve(self, conn: PatientConnection) -> None:
        pgconn, fileno = conn.pgconn, conn.fileno()
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        poll.register(self._reader, select.POLLIN)
        while not self._closing.is_set():
            rest = self._told_at + REST_SECONDS - time.monotonic()
            pending = self._news.is_set()
            for ready, _ in poll.poll(max(0.0, rest) * 1000 if pending else None):
                if ready == self._reader:
                    os.read(self._reader, 4096)
                else:
                    pgconn.consume_input()
            while (one := pgconn.notifies()) is not None:
                self._heard = self._heard or one.be_pid != self._me
            if self._heard:
                self._heard = False
                self._wake()
            if self._news.is_set() and time.monotonic() >= self._told_at + REST_SECONDS:
                self._news.clear()
                self._told_at = time.monotonic()
                conn.execute(f"NOTIFY {self._channel}")

    def _hear(self, hint: psycopg.Notify) -> None:
        """Take a hint that came while psycopg waited for something else."""
        self._heard = self._heard or hint.pid != self._me
