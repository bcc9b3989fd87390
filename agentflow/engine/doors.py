"""The doors of the world, shut while workflow code runs.

A workflow is run again and again against its history, so it must not look at the clock, draw
random numbers, or touch files, sockets, threads and processes by itself. While a workflow loop is
being drained (an *activation*) the calls in the tables below raise `ForbiddenCallError` with the
name of the right door. Two classes of them:

* Clocks, randomness and files are refused to *user code*: the frame that calls belongs neither to
  the standard library, nor to an installed package, nor to agentflow. Libraries may use them.
* Sockets, threads and processes are refused to everyone on this thread, for they are effects
  whoever starts them; except to a module that is being imported.

How: wrappers are installed once, at the first activation (0.5 ms), and stay. Outside of an
activation a wrapper passes on. Measured on CPython 3.11.7, 3.12.1 and 3.13.0: a wrapped call costs
80 to 90 ns more than a bare one everywhere in the process (``time.time()`` 50 to 134 ns,
``random.random()`` 39 to 119 ns); shutting and opening the doors costs 0.3 us per activation.
The other way, swapping these 60 attributes in and out around every drain, would cost nothing
elsewhere and some 2.5 us per drain (saving, comparing and updating twice the 20 names of ``random``
alone is 0.85 us), and would be wrong in two ways that cannot be mended: whoever patches
``time.time`` between two drains (freezegun, monkeypatch), or during one on another thread, would
have that undone by our restore; and ``from time import time`` executed on another thread during a
drain would keep the wrapper anyway.

What it cannot see: ``datetime.now()`` (a C type; `agentflow.engine.check` finds it), and names that
user code imported before the first activation, ``from random import choice``, unless
`guard_namespace` is called for its module. ``from uuid import uuid4`` is seen all the same, through
the ``os.urandom`` that it calls.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from types import FrameType, MethodType, ModuleType
from typing import Any, Final

from agentflow.errors import ForbiddenCallError

_NOW: Final = "Use agentflow.now(), or asyncio.get_running_loop().time()."
_RANDOM: Final = "Use agentflow.random(), which is seeded per run and task."
_UUID: Final = "Use agentflow.uuid4()."
_SLEEP: Final = "Use `await asyncio.sleep(…)`, which is a durable timer."
_EFFECT: Final = "Move it into a function under @tool or @activity, and await that."
_ASK: Final = "Use agentflow.approve(…) or agentflow.wait_signal(…)."

# Modules by name, and not imported above: importing `time` into the engine is forbidden by the
# import contract, rightly so, and this file is the one that keeps others from calling it.
_USER_ONLY: Final[tuple[tuple[str, str, str], ...]] = (
    ("time", "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns", _NOW),
    ("time", "sleep", _SLEEP),
    (
        "random",
        (
            "random uniform triangular randint choice choices randrange sample shuffle"
            " normalvariate lognormvariate expovariate vonmisesvariate gammavariate gauss"
            " betavariate binomialvariate paretovariate weibullvariate getrandbits randbytes seed"
        ),
        _RANDOM,
    ),
    ("uuid", "uuid1 uuid4 uuid6 uuid7", _UUID),
    ("os", "urandom getrandom", _RANDOM),
    ("secrets", "token_bytes token_hex token_urlsafe choice randbelow randbits", _RANDOM),
    ("builtins", "open", _EFFECT),
    ("io", "open", _EFFECT),
    ("builtins", "input", _ASK),
    ("urllib.request", "urlopen urlretrieve", _EFFECT),
)

_EVERYONE: Final[tuple[tuple[str, str, str], ...]] = (
    ("socket", "getaddrinfo gethostbyname", _EFFECT),
    ("_thread", "start_new_thread start_new start_joinable_thread", _EFFECT),
    ("os", "system fork forkpty posix_spawn posix_spawnp", _EFFECT),
)

_EVERYONE_METHODS: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("socket", "socket", "__init__", _EFFECT),
    ("threading", "Thread", "start", _EFFECT),
    ("subprocess", "Popen", "__init__", _EFFECT),
    ("concurrent.futures.thread", "ThreadPoolExecutor", "submit", _EFFECT),
    ("concurrent.futures.process", "ProcessPoolExecutor", "submit", _EFFECT),
)

# Modules that take long to import: wrapped only if somebody has imported them already. They work
# through sockets and processes, which are refused in any case.
_IF_LOADED: Final = frozenset({"urllib.request", "concurrent.futures.process"})

# Files of the standard library that do nothing but pass on: their caller is who calls. Through
# uuid.py a `uuid4` is seen that was imported by name before it was wrapped.
_PASSES_ON: Final = ("/pathlib", "/uuid.py", "/secrets.py", "/urllib/")

# Depth of nested activations by thread id. A dict of the whole process, and not a threading.local,
# because "is it empty" is the cheapest question that a wrapper can ask.
_active: Final[dict[int, int]] = {}
_originals: Final[dict[int, Any]] = {}
_wrappers: Final[dict[int, Any]] = {}
_undo: Final[list[tuple[Any, str, Any, Any]]] = []
_install_lock: Final = threading.Lock()
_get_ident: Final = threading.get_ident


def _directories() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    package = __file__.rpartition("engine")[0]
    return (*(f"{paths[name]}/" for name in names), "<frozen ", package)


_NOT_USER: Final = _directories()


@functools.cache
def is_user_file(filename: str) -> bool:
    """Return whether code of *filename* is the user's own.

    Args:
        filename: ``co_filename`` of a code object; ``<string>`` and the like are the user's.
    """
    name = filename.replace("\\", "/")
    return not (
        name.startswith(_NOT_USER) or "/site-packages/" in name or "/dist-packages/" in name
    )


@functools.cache
def _passes_on(filename: str) -> bool:
    return not is_user_file(filename) and any(part in filename for part in _PASSES_ON)


def _is_user_call(frame: FrameType | None) -> bool:
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith("<") and not filename.startswith("<frozen "):
            # Made at run time: a dataclass's __init__ runs in the globals of its module, others
            # (attrs, exec) in globals of their own, and then whoever called it is meant.
            module = frame.f_globals
            if module.get("__name__") == "__main__":
                return True
            filename = str(module.get("__file__", ""))
        if filename and not _passes_on(filename):
            return is_user_file(filename)
        frame = frame.f_back
    return False


def _is_importing(frame: FrameType | None) -> bool:
    # Walked only when something is about to be refused.
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _forbid(name: str, hint: str) -> ForbiddenCallError:
    return ForbiddenCallError(
        f"Workflow code called {name.removeprefix('builtins.')}(), whose result is not recorded.",
        hint=hint,
        data={"function": name.removeprefix("builtins.")},
    )


class _Door:
    """What a wrapper is bound to, so that it pickles as the attribute that it replaces."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return importlib.import_module, (self._module,)


def _wrap_for_users(original: Any, name: str, hint: str) -> Any:
    def guarded(_door: _Door, *args: Any, **kwargs: Any) -> Any:
        if _active and _get_ident() in _active:
            caller = sys._getframe(1)  # noqa: SLF001
            if _is_user_call(caller) and not _is_importing(caller):
                raise _forbid(name, hint)
        return original(*args, **kwargs)

    return _bind(guarded, original, name)


def _wrap_for_everyone(original: Any, name: str, hint: str) -> Any:
    def guarded(_door: _Door, *args: Any, **kwargs: Any) -> Any:
        if _active and _get_ident() in _active and not _is_importing(sys._getframe(1)):  # noqa: SLF001
            raise _forbid(name, hint)
        return original(*args, **kwargs)

    return _bind(guarded, original, name)


def _bind(guarded: Any, original: Any, name: str) -> Any:
    # A bound method and not a function, because builtins do not bind: with a function,
    # `class Meter: clock = time.monotonic` would begin to pass `self`.
    module, _, attribute = name.rpartition(".")
    guarded.__name__ = guarded.__qualname__ = attribute
    guarded.__doc__ = getattr(original, "__doc__", None)
    guarded.__module__ = module
    return MethodType(guarded, _Door(module))


def _wrap_method(original: Any, name: str, hint: str) -> Any:
    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if _active and _get_ident() in _active and not _is_importing(sys._getframe(1)):  # noqa: SLF001
            raise _forbid(name, hint)
        return original(*args, **kwargs)

    return guarded


def _module(name: str) -> ModuleType | None:
    return sys.modules.get(name) if name in _IF_LOADED else importlib.import_module(name)


def _replace(owner: Any, attribute: str, wrapper: Any) -> None:
    original = getattr(owner, attribute)
    _originals[id(wrapper)] = original
    _wrappers[id(original)] = wrapper
    _undo.append((owner, attribute, original, wrapper))
    setattr(owner, attribute, wrapper)


def _is_wrapped(owner: Any, attribute: str) -> bool:
    return any(o is owner and a == attribute for o, a, _, _ in _undo)


def install_doors() -> None:
    """Install the wrappers; again wraps what has been imported since.

    Called by the first activation. Idempotent and safe from several threads.
    """
    with _install_lock:
        for table, wrap in ((_USER_ONLY, _wrap_for_users), (_EVERYONE, _wrap_for_everyone)):
            for module_name, attributes, hint in table:
                module = _module(module_name)
                for attribute in attributes.split():
                    _install(module, attribute, f"{module_name}.{attribute}", (wrap, hint))
        for module_name, class_name, method, hint in _EVERYONE_METHODS:
            owner = getattr(_module(module_name), class_name, None)
            shown = f"{module_name}.{class_name}" + ("" if method == "__init__" else f".{method}")
            _install(owner, method, shown, (_wrap_method, hint))


def _install(
    owner: Any, attribute: str, name: str, how: tuple[Callable[[Any, str, str], Any], str]
) -> None:
    original = getattr(owner, attribute, None)
    if owner is None or original is None or _is_wrapped(owner, attribute):
        return
    wrap, hint = how
    _replace(owner, attribute, wrap(original, name, hint))


def uninstall_doors() -> None:
    """Take the wrappers out again, where nobody has patched over them since."""
    with _install_lock:
        while _undo:
            owner, attribute, original, wrapper = _undo.pop()
            if getattr(owner, attribute, None) is wrapper:
                setattr(owner, attribute, original)
        _originals.clear()
        _wrappers.clear()


def guard_namespace(namespace: dict[str, Any]) -> list[str]:
    """Replace functions that a module took by name before they were wrapped.

    ``from random import choice`` binds the bare function; in a module that defines workflows it
    must be the guarded one, which outside of an activation does the same.

    Args:
        namespace: The globals of the module, ``function.__globals__``; changed in place.

    Returns:
        The names that were replaced, in order.
    """
    install_doors()
    replaced = []
    for name, value in list(namespace.items()):
        wrapper = _wrappers.get(id(value))
        if wrapper is not None and _originals.get(id(wrapper)) is value:
            namespace[name] = wrapper
            replaced.append(name)
    return replaced


def enter_activation() -> None:
    """Shut the doors for this thread; nests."""
    if not _undo:
        install_doors()
    ident = _get_ident()
    _active[ident] = _active.get(ident, 0) + 1


def leave_activation() -> None:
    """Undo one `enter_activation` of this thread."""
    ident = _get_ident()
    depth = _active.get(ident, 0) - 1
    if depth > 0:
        _active[ident] = depth
    else:
        _active.pop(ident, None)


@contextlib.contextmanager
def activation_doors() -> Iterator[None]:
    """Shut the doors of the world for this thread while the block runs."""
    enter_activation()
    try:
        yield
    finally:
        leave_activation()


@contextlib.contextmanager
def doors_lifted() -> Iterator[None]:
    """Open the doors for this thread: for what the engine does on its own behalf in a drain.

    A log handler that opens a socket, for example, is not workflow code.
    """
    ident = _get_ident()
    depth = _active.pop(ident, 0)
    try:
        yield
    finally:
        if depth:
            _active[ident] = depth


def is_activation() -> bool:
    """Return whether this thread is running workflow code."""
    return _get_ident() in _active


__all__ = [
    "activation_doors",
    "doors_lifted",
    "enter_activation",
    "guard_namespace",
    "install_doors",
    "is_activation",
    "is_user_file",
    "leave_activation",
    "uninstall_doors",
]
