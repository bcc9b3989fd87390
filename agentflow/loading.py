"""Imports on demand: what a process does not use, it does not load."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

_FROZEN_BY_PYTHON = 1000  # objects at most: 3.12 begins with 375; an application has thousands


def lazy(names: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__`, which loads a name when it is first used, and keeps it.

    Args:
        names: The `globals()` of that module.
        homes: For each lazy name the module that has it, relative to agentflow.
    """

    def attribute(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {names['__name__']!r} has no attribute {name!r}")
        names[name] = getattr(load(f"agentflow.{home}"), name)
        return names[name]

    return attribute


def load(path: str) -> ModuleType:
    """Return the module *path*, imported at the first call.

    What an import makes is there to stay, and to look through it is a fifth of a cold start. So
    the garbage collector rests meanwhile, and then finds it all in its oldest generation, where
    it would come after some collections anyway: nothing is kept that could be freed.
    """
    if path in sys.modules:
        return importlib.import_module(path)  # waits where another thread is still at it
    was_on = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(path)
    finally:
        if was_on:
            _age()
            gc.enable()


def _age() -> None:
    """Move every object into the oldest generation, without a look at any of them."""
    if gc.get_freeze_count() > _FROZEN_BY_PYTHON:
        return  # the application has frozen objects of its own, which this would release
    gc.freeze()
    gc.unfreeze()
