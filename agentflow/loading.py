"""Imports on demand: what a process does not use, it does not load."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def load(path: str) -> ModuleType:
    """Return the module *path*, imported at the first call.

    The garbage collector rests meanwhile: what an import makes is there to stay, and to look
    through it again and again takes a tenth of a cold start.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(path)
    finally:
        if was_on:
            gc.enable()
