"""Methods of event loops that workflow code must not call, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agentflow.errors import Evicted, ForbiddenCallError

_EFFECT: Final = "Move it into a function under @tool or @activity, and await that."

LOOP_REFUSALS: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            "add_reader",
            "add_writer",
            "connect_accepted_socket",
            "connect_read_pipe",
            "connect_write_pipe",
            "create_connection",
            "create_datagram_endpoint",
            "create_server",
            "create_unix_connection",
            "create_unix_server",
            "getaddrinfo",
            "getnameinfo",
            "remove_reader",
            "remove_writer",
            "run_in_executor",
            "sendfile",
            "set_default_executor",
            "sock_accept",
            "sock_connect",
            "sock_recv",
            "sock_recv_into",
            "sock_recvfrom",
            "sock_recvfrom_into",
            "sock_sendall",
            "sock_sendfile",
            "sock_sendto",
            "start_tls",
            "subprocess_exec",
            "subprocess_shell",
        ),
        _EFFECT,
    ),
    **dict.fromkeys(
        ("add_signal_handler", "remove_signal_handler"),
        "Handle operating system signals outside of workflows; see agentflow.wait_signal(…).",
    ),
    **dict.fromkeys(
        ("run_forever", "run_until_complete", "stop"),
        "Await the coroutine; the run drives this loop.",
    ),
    "set_task_factory": "Create tasks with asyncio.create_task or TaskGroup.",
    "set_exception_handler": "Catch the exception where it is raised.",
    "default_exception_handler": "Catch the exception where it is raised.",
}


def _refusal(name: str, hint: str) -> Callable[..., None]:
    def refuse(self: Any, *_args: object, **_kwargs: object) -> None:
        if self.evicting:
            raise Evicted("the run leaves memory")
        raise ForbiddenCallError(f"Workflow code called loop.{name}().", hint=hint)

    refuse.__name__ = name
    refuse.__qualname__ = f"WorkflowLoop.{name}"
    refuse.__doc__ = f"Refuse: {hint}"
    return refuse


def refuse_methods(loop_class: type) -> None:
    """Give *loop_class* a method for each name above, which raises and names the fix."""
    for name, hint in LOOP_REFUSALS.items():
        setattr(loop_class, name, _refusal(name, hint))
