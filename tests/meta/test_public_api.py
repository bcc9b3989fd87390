"""The public API is deliberate, sorted, documented, and says its units."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import pytest

import agentflow
import agentflow.agents
import agentflow.llm
import agentflow.testing

PUBLIC: list[ModuleType] = [agentflow, agentflow.agents, agentflow.llm]
MOST_NAMES = 45  # what a reader takes in as one list; what few need has its home one level down
NUMBERS = {"int", "float", "Decimal", "int | None", "float | None", "Decimal | None"}
UNIT_SUFFIXES = ("_usd", "_tokens", "_ms", "_bytes", "_count")
UNIT_WORDS = ("second", "dollar", "token", "byte", "number", "tries", "times", "1-based", "share")

every_module = pytest.mark.parametrize("module", PUBLIC, ids=lambda m: m.__name__)
every_name = pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(m, n, id=f"{m.__name__}.{n}") for m in PUBLIC for n in m.__all__],
)


@every_module
def test_all_is_sorted_and_complete(module: ModuleType) -> None:
    """`__all__` is sorted, without repeats, and names every public object of ours in the module."""
    present = {n for n, v in vars(module).items() if not n.startswith("_") and is_ours(v)}

    assert list(module.__all__) == sorted(set(module.__all__))
    assert present <= set(module.__all__)


def test_the_top_level_stays_small() -> None:
    """A new name there takes the place of another, or goes to the package that it belongs to."""
    assert len(agentflow.__all__) <= MOST_NAMES


def test_a_name_has_one_public_home() -> None:
    """What a package below exports is not at the top level too."""
    below = [name for module in PUBLIC[1:] for name in module.__all__]

    assert set(below) & set(agentflow.__all__) == set()
    assert not [name for name in below if hasattr(agentflow, name)]


@every_name
def test_name_is_public_and_resolves(module: ModuleType, name: str) -> None:
    """Names are loaded when first asked for; each of them is there, and `dir` shows it."""
    assert not name.startswith("_") or name == "__version__"
    assert getattr(module, name) is getattr(module, name)
    assert name in dir(module)


@every_module
def test_an_unknown_name_is_an_attribute_error(module: ModuleType) -> None:
    """A lazy module answers a wrong name as any module does."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_type_checkers_see_a_wrong_name() -> None:
    """Names that are loaded lazily are typed like others (strict mypy: an unused ignore fails)."""
    with pytest.raises(AttributeError):
        _ = agentflow.no_such_name  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = agentflow.testing.no_such_name  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = agentflow.llm.no_such_name  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = agentflow.agents.no_such_name  # type: ignore[attr-defined]


@every_name
def test_docstring_is_complete(module: ModuleType, name: str) -> None:
    """Summary, Args, Returns, Raises and units are all there."""
    obj = getattr(module, name)
    if not (inspect.isclass(obj) or callable(obj)):
        return  # a value, a type alias
    doc = inspect.getdoc(obj)
    assert doc, f"{name} has no docstring"
    if is_dataclass(obj):
        for field in fields(obj):
            if field.name.startswith("_"):
                continue
            assert f"{field.name}:" in doc, f"{name}.{field.name} is not described"
            assert says_unit(field.name, str(field.type), doc), f"{name}.{field.name}: unit?"
    for label, function in callables(name, obj):
        check_callable(label, function)


def is_ours(obj: Any) -> bool:
    """Return whether *obj* is a class or function written in agentflow, and no module."""
    home = getattr(obj, "__module__", None) or ""
    return not inspect.ismodule(obj) and home.partition(".")[0] == "agentflow"


def callables(name: str, obj: Any) -> list[tuple[str, Callable[..., Any]]]:
    """Return the functions to check: *obj* itself, or the public methods that we wrote."""
    if inspect.isfunction(obj):
        return [(name, obj)]
    members = inspect.getmembers(obj, lambda m: inspect.isfunction(m) or inspect.ismethod(m))
    return [(f"{name}.{n}", f) for n, f in members if not n.startswith("_") and is_ours(f)]


def check_callable(name: str, function: Callable[..., Any]) -> None:
    """Fail unless the docstring of *function* has the sections it needs."""
    doc = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    assert doc, f"{name} has no docstring"
    if parameters:
        assert "Args:" in doc, f"{name} has no Args section"
    for parameter in parameters:
        assert f"{parameter.name}:" in doc, f"{name}: {parameter.name} is not described"
        unit = says_unit(parameter.name, str(parameter.annotation), doc)
        assert unit, f"{name}: unit of {parameter.name}?"
    if signature.return_annotation not in {"None", None, inspect.Signature.empty}:
        assert "Returns:" in doc or "Yields:" in doc, f"{name} has no Returns section"
    for error in raised(function):
        assert f"{error}:" in doc, f"{name} raises {error} without saying so"


def says_unit(name: str, annotation: str, doc: str) -> bool:
    """Return whether a number's unit is in its name or in its line of the docstring."""
    if annotation not in NUMBERS or name.endswith(UNIT_SUFFIXES):
        return True
    line = doc.split(f"{name}:", 1)[1].split("\n", 1)[0].lower()
    return any(word in line for word in UNIT_WORDS)


def raised(function: Callable[..., Any]) -> set[str]:
    """Return the names of the exceptions *function* raises directly."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise))
    return {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
