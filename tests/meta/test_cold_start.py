"""What a process does not need it does not load: the start is short because little is imported."""

from __future__ import annotations

import ast
from pathlib import Path

import agentflow

HERE = Path(agentflow.__file__).parent


def test_dataclasses_are_made_by_our_own_decorator() -> None:
    """The standard one compiles six functions for each class when it is imported."""
    standard = {
        str(path.relative_to(HERE))
        for path in HERE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
        if any(name.name == "dataclass" for name in node.names)
    }

    assert standard == {"dataclass.py"}
