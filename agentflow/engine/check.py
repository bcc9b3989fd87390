"""What workflow code must not do, found by reading it: ``agentflow check FILE``.

Finds what the doors cannot see at run time (``datetime.now`` is a C type that nobody can patch) and
what would only show on another day: iteration over a set, a handler that swallows `Evicted`.
Looked at are functions under ``@workflow``, and functions of the same file that they name, down to
the last; never functions under ``@activity`` or ``@tool``, which are where such calls belong.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from agentflow.dataclass import dataclass
from agentflow.engine.check_rules import HARMLESS, HARMLESS_WITH_ARGUMENTS, METHODS, RULES

Severity = Literal["error", "warning"]
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

ALLOW: Final = "agentflow: allow"
"""A comment with these words silences its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place that will not replay.

    Attributes:
        path: The file, as it was given.
        line: From 1.
        column: From 1.
        code: Stable: ``AFC`` and three digits.
        message: What is wrong, in one line.
        hint: What to write instead.
        severity: An ``error`` breaks replay; a ``warning`` may, or only looks odd.
    """

    path: str
    line: int
    column: int
    code: str
    message: str
    hint: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.code} {self.message} {self.hint}"


_BUILTINS: Final = frozenset({"open", "input", "print", "hash", "id"})
# What makes the order of a set visible; sorted(), len(), any(), sum() and the like do not.
_ORDERED: Final = frozenset(
    {"list", "tuple", "enumerate", "iter", "next", "zip", "map", "reversed"}
)
_MUTATORS: Final = frozenset(
    {
        "add",
        "append",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "setdefault",
        "sort",
        "update",
    }
)


def check_source(source: str, filename: str) -> list[Finding]:
    r"""Report what in *source* would not replay.

    Args:
        source: The text of a Python file.
        filename: Its name, for the findings.

    Returns:
        Findings by place; a file that does not parse is one finding, ``AFC001``.

    >>> source = "@workflow\nasync def f():\n    return datetime.now()\n"
    >>> [f.code for f in check_source("from datetime import datetime\n" + source, "f.py")]
    ['AFC101']
    """
    try:
        tree = ast.parse(source, filename)
    except (SyntaxError, ValueError) as error:
        line, column = getattr(error, "lineno", None) or 1, getattr(error, "offset", None) or 1
        message = f"The file does not parse: {getattr(error, 'msg', error)}."
        return [
            Finding(
                path=filename, line=line, column=column, code="AFC001", message=message, hint=""
            )
        ]
    module = _Module(tree)
    allowed = _allowed_lines(source)
    found: dict[tuple[int, int, str], Finding] = {}
    for function, why in module.reached():
        for finding in _Checker(module, function, why, filename).check(allowed):
            found.setdefault((finding.line, finding.column, finding.code), finding)
    return [found[place] for place in sorted(found)]


def _allowed_lines(source: str) -> frozenset[int]:
    if ALLOW not in source:
        return frozenset()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return frozenset(t.start[0] for t in tokens if t.type == tokenize.COMMENT and ALLOW in t.string)


class _Module:
    """The names of one file: what they were imported from, and the functions they name."""

    def __init__(self, tree: ast.Module) -> None:
        self.imports: dict[str, str] = {}
        for node in ast.walk(tree):
            self.imports.update(_imported(node))
        self.functions = {n.name: n for n in tree.body if isinstance(n, _Function)}
        self.bound = _bound_names(tree.body) - self.imports.keys()
        self.mutable = {
            name
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and _is_mutable(node.value)
            for name in _bound_names([node])
        }
        self._all_functions = [n for n in ast.walk(tree) if isinstance(n, _Function)]

    def resolve(self, node: ast.expr, hidden: frozenset[str]) -> str | None:
        """Return the dotted name that *node* was imported as, or ``None``."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in hidden or node.id in self.bound:
            return None
        root = self.imports.get(node.id)
        if root is None and not parts and node.id in _BUILTINS:
            root = "builtins." + node.id
        return None if root is None else ".".join([root, *reversed(parts)])

    def is_decorated(self, function: _Function, *names: str) -> bool:
        """Return whether *function* has one of agentflow's decorators *names*."""
        for decorator in function.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            dotted = self.resolve(target, frozenset()) or ast.unparse(target)
            # The last word decides, whatever it was imported through; but not somebody else's.
            root, _, last = dotted.rpartition(".")
            if last in names and (not root or root.split(".")[0] in {"agentflow", "af"}):
                return True
        return False

    def reached(self) -> Iterator[tuple[_Function, str]]:
        """Yield each function that runs in a workflow, with how it is reached."""
        seen: set[int] = set()
        pending: list[tuple[_Function, str]] = [
            (function, "")
            for function in self._all_functions
            if self.is_decorated(function, "workflow")
        ]
        while pending:
            function, why = pending.pop(0)
            if id(function) in seen or self.is_decorated(function, "activity", "tool"):
                continue
            seen.add(id(function))
            yield function, why
            origin = why or f" ({function.name} is a workflow)"
            via = origin.replace(" is a workflow)", " calls it)")
            # Named and not only called: it may be handed to map() or create_task().
            names = [node.id for node in ast.walk(function) if isinstance(node, ast.Name)]
            pending += [(self.functions[name], via) for name in names if name in self.functions]


def _imported(node: ast.AST) -> dict[str, str]:
    if isinstance(node, ast.Import):
        return {
            (a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0])
            for a in node.names
        }
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {}


def _bound_names(nodes: Iterable[ast.AST]) -> frozenset[str]:
    return frozenset(
        node.id
        for top in nodes
        for node in _walk_scope(top)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )


def _walk_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Walk without entering functions and classes defined inside."""
    yield node
    if isinstance(node, (*_SCOPES, ast.ClassDef)):
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk_scope(child)


def _local_names(function: _Function | ast.Lambda) -> frozenset[str]:
    arguments = function.args
    names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    names |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
    body = function.body if isinstance(function.body, list) else [function.body]
    declared_global = {
        name
        for top in body
        for n in _walk_scope(top)
        if isinstance(n, ast.Global)
        for name in n.names
    }
    return (frozenset(names) | _bound_names(body)) - declared_global


def _is_mutable(node: ast.expr | None) -> bool:
    if isinstance(node, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"list", "dict", "set", "defaultdict", "deque", "Counter"}
    )


def _is_set(node: ast.expr) -> bool:
    """Return whether *node* makes a set whose order may differ between processes."""
    if isinstance(node, ast.Set):
        # Small numbers hash to themselves; strings are salted per process.
        return not all(
            isinstance(e, ast.Constant) and isinstance(e.value, (int, float)) for e in node.elts
        )
    if isinstance(node, ast.SetComp):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr, ast.Sub)):
        return _is_set(node.left) or _is_set(node.right)
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"set", "frozenset"}
        and bool(node.args)
    )


class _Checker(ast.NodeVisitor):
    """The findings of one function, and of those defined inside it."""

    def __init__(self, module: _Module, function: _Function, why: str, filename: str) -> None:
        self._module = module
        self._function = function
        self._why = why
        self._filename = filename
        self._hidden = _local_names(function)
        self._found: list[tuple[Finding, range]] = []

    def check(self, allowed: frozenset[int]) -> list[Finding]:
        """Return what was found, except on the lines *allowed*."""
        for statement in self._function.body:
            self.visit(statement)
        return [f for f, lines in self._found if not allowed.intersection(lines)]

    def _report(
        self, node: ast.AST, code: str, message: str, hint: str, severity: Severity = "error"
    ) -> None:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
        # A comment may stand on any line of a long call, but only on the first of a block.
        last = (getattr(node, "end_lineno", None) or line) if isinstance(node, ast.expr) else line
        finding = Finding(
            path=self._filename,
            line=line,
            column=column,
            code=code,
            message=f"{message}{self._why}.",
            hint=hint,
            severity=severity,
        )
        self._found.append((finding, range(line, last + 1)))

    def _visit_function(self, node: _Function | ast.Lambda) -> None:
        if isinstance(node, _Function) and self._module.is_decorated(node, "activity", "tool"):
            return
        outer = self._hidden
        self._hidden |= _local_names(node)
        self.generic_visit(node)
        self._hidden = outer

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function  # noqa: N815 -- ast's

    def visit_Call(self, node: ast.Call) -> None:
        """Look up what is called, and what becomes of a set that is passed."""
        dotted = self._module.resolve(node.func, self._hidden)
        if dotted is not None:
            self._check_name(node, dotted)
        if isinstance(node.func, ast.Attribute):
            self._check_method(node, node.func)
        if isinstance(node.func, ast.Name) and node.func.id in _ORDERED:
            for argument in node.args:
                self._check_order(argument)
        if dotted in {"asyncio.as_completed", "asyncio.gather"}:
            for argument in node.args:
                self._check_order(argument.value if isinstance(argument, ast.Starred) else argument)
        self.generic_visit(node)

    def _check_name(self, node: ast.Call, dotted: str) -> None:
        needed = HARMLESS_WITH_ARGUMENTS.get(dotted)
        told = needed is not None and len(node.args) + len(node.keywords) >= needed
        if dotted in HARMLESS or told:
            return
        if dotted == "contextlib.suppress":
            if any(self._is_base_exception(a) for a in node.args):
                self._report_swallowed(node)
            return
        for rule in RULES:
            if any(
                dotted.startswith(name) if name.endswith(".") else dotted == name
                for name in rule.names.split()
            ):
                shown = dotted.removeprefix("builtins.")
                self._report(node, rule.code, f"{shown}() {rule.what}", rule.hint, rule.severity)
                return

    def _check_method(self, node: ast.Call, target: ast.Attribute) -> None:
        if target.attr in METHODS:
            code, what, hint = METHODS[target.attr]
            self._report(node, code, f".{target.attr}() {what}", hint)
        if target.attr == "join":
            for argument in node.args:
                self._check_order(argument)
        if target.attr in _MUTATORS and self._is_module_state(target.value):
            self._report_state(node, ast.unparse(target.value))

    # --- order of sets ----------------------------------------------------------------------

    def _check_order(self, iterable: ast.expr) -> None:
        if _is_set(iterable):
            self._report(
                iterable,
                "AFC111",
                "The order of a set differs between processes",
                "Use sorted(…), or dict.fromkeys(…) to keep the order.",
            )

    def visit_For(self, node: ast.For) -> None:
        """Check what is iterated over."""
        self._check_order(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Check what is iterated over."""
        self._check_order(node.iter)
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        """Check what is unpacked."""
        self._check_order(node.value)
        self.generic_visit(node)

    # --- handlers that swallow --------------------------------------------------------------

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """Check that what catches everything raises it again."""
        catches_all = node.type is None or any(
            self._is_base_exception(e)
            for e in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type])
        )
        raises = any(isinstance(n, ast.Raise) for top in node.body for n in _walk_scope(top))
        if catches_all and not raises:
            self._report_swallowed(node)
        self.generic_visit(node)

    def _is_base_exception(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in {"BaseException", "BaseExceptionGroup"}

    def _report_swallowed(self, node: ast.AST) -> None:
        self._report(
            node,
            "AFC112",
            "This swallows Evicted, which must pass when a waiting run leaves memory",
            "Catch Exception, or end the handler with `raise`.",
        )

    # --- state outside of the run -----------------------------------------------------------

    def visit_Global(self, node: ast.Global) -> None:
        """Report: what is written there is not in the history."""
        self._report_state(node, ", ".join(node.names))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Check writes to containers of the module, and reads of the environment."""
        if isinstance(node.ctx, (ast.Store, ast.Del)) and self._is_module_state(node.value):
            self._report_state(node, ast.unparse(node.value))
        if self._module.resolve(node.value, self._hidden) == "os.environ":
            self._report(
                node,
                "AFC203",
                "os.environ[…] reads this machine",
                "Pass it in as the workflow's input.",
                "warning",
            )
        self.generic_visit(node)

    def _is_module_state(self, node: ast.expr) -> bool:
        return (
            isinstance(node, ast.Name)
            and node.id in self._module.mutable
            and node.id not in self._hidden
        )

    def _report_state(self, node: ast.AST, name: str) -> None:
        self._report(
            node,
            "AFC113",
            f"{name} belongs to the process: replay changes it again",
            "Keep state in local variables, or change it in an @activity.",
        )
