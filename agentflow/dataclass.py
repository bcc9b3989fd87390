"""The `dataclass` decorator of the standard library, without its price at import.

The standard one writes and compiles six functions per class: half a millisecond each, and most of
what importing agentflow would cost. Here all classes share how they are compared, printed and
frozen, and an ``__init__`` is written when it is first looked up. What is made is a dataclass:
`dataclasses.fields`, `replace` and `asdict`, ``match`` and pydantic see no difference. A frozen,
slotted one is also built faster, through the descriptors of its slots.

One thing is left out: ``__dataclass_params__`` does not say ``frozen``, so a class that is derived
from a frozen one of ours must be decorated with this decorator too.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError
from reprlib import recursive_repr
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, NoReturn

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass


class _Unwritten:
    """Stands for a class's ``__init__`` until somebody looks it up, then gives way to it."""

    __slots__ = ("_cls", "_is_frozen")

    def __init__(self, cls: type, *, is_frozen: bool) -> None:
        self._cls = cls
        self._is_frozen = is_frozen

    def __get__(self, instance: object, owner: type) -> Any:
        function = _written(self._cls, is_frozen=self._is_frozen)
        setattr(self._cls, "__init__", function)  # noqa: B010 -- mypy minds the plain form
        return function.__get__(instance, owner)


def _lean(
    cls: type | None = None,
    /,
    *,
    repr: bool = True,  # noqa: A002
    eq: bool = True,
    order: bool = False,
    frozen: bool = False,
    slots: bool = False,
    kw_only: bool = False,
) -> Any:
    """Make *cls* a dataclass; see `dataclasses.dataclass` for the arguments."""

    def wrap(cls: type) -> type:
        own = set(vars(cls))
        if eq and "__eq__" in own and vars(cls).get("__hash__") is None:
            own.discard("__hash__")  # Python's None beside an __eq__ of one's own
        cls.__doc__ = cls.__doc__ or cls.__name__  # where it is empty, the signature is rendered
        made: type = dataclasses.dataclass(
            cls, init=False, repr=False, eq=False, slots=slots, kw_only=kw_only
        )
        fields = dataclasses.fields(made)
        added: dict[str, Any] = {"__init__": _Unwritten(made, is_frozen=frozen)}
        if repr:
            added["__repr__"] = _repr_of(tuple(f.name for f in fields if f.repr))
        if eq:
            values = _values_of(tuple(f.name for f in fields if f.compare))
            added |= _compared(values, is_ordered=order)
            added["__hash__"] = _hash_of(values) if frozen else None
        if frozen:
            added |= {"__setattr__": _refuse_set, "__delattr__": _refuse_delete}
        if frozen and slots:
            added |= {"__getstate__": _state, "__setstate__": _set_state}
        for name, value in added.items():
            if name not in own:
                setattr(made, name, value)
        return made

    return wrap if cls is None else wrap(cls)


if not TYPE_CHECKING:
    dataclass = _lean


def _values_of(names: tuple[str, ...]) -> Callable[[Any], Any]:
    if not names:
        return lambda _: ()
    return operator.attrgetter(*names)


def _repr_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    @recursive_repr()
    def method(self: Any) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({said})"

    return method


def _compared(values: Callable[[Any], Any], *, is_ordered: bool) -> dict[str, Any]:
    def made(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
        def method(self: Any, other: Any) -> Any:
            if other.__class__ is self.__class__:
                return compare(values(self), values(other))
            return NotImplemented

        return method

    names = ("eq", "lt", "le", "gt", "ge") if is_ordered else ("eq",)
    return {f"__{name}__": made(getattr(operator, name)) for name in names}


def _hash_of(values: Callable[[Any], Any]) -> Callable[[Any], int]:
    def method(self: Any) -> int:
        return hash(values(self))

    return method


def _refuse_set(_self: object, name: str, _value: object) -> NoReturn:
    msg = f"cannot assign to field {name!r}"
    raise FrozenInstanceError(msg)


def _refuse_delete(_self: object, name: str) -> NoReturn:
    msg = f"cannot delete field {name!r}"
    raise FrozenInstanceError(msg)


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)


def _written(cls: Any, *, is_frozen: bool) -> Any:
    """Return the ``__init__`` of *cls*: the one place where code is made from text."""
    fields = dataclasses.fields(cls)
    names: dict[str, Any] = {"_unset": MISSING, "_set": object.__setattr__}
    positional = [_argument(f, names) for f in fields if f.init and not f.kw_only]
    keyword = [_argument(f, names) for f in fields if f.init and f.kw_only]
    arguments = ", ".join(["self", *positional, *(["*", *keyword] if keyword else [])])
    body = [_assignment(cls, f, names, is_frozen=is_frozen) for f in fields]
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    lines = "\n  ".join([line for line in body if line] or ["pass"])
    source = f"def _made({', '.join(names)}):\n def __init__({arguments}):\n  {lines}\n"
    made: dict[str, Any] = {}
    home = vars(sys.modules[cls.__module__])
    exec(f"{source} return __init__", home, made)  # noqa: S102 -- names of fields are identifiers
    function = made["_made"](**names)
    function.__qualname__ = f"{cls.__qualname__}.__init__"
    function.__annotations__ = {f.name: f.type for f in fields if f.init} | {"return": None}
    return function


def _argument(field: Field[Any], names: dict[str, Any]) -> str:
    if field.default is not MISSING:
        names[f"_default_{field.name}"] = field.default
        return f"{field.name}=_default_{field.name}"
    if field.default_factory is not MISSING:
        names[f"_make_{field.name}"] = field.default_factory
        return f"{field.name}=_unset"
    return field.name


def _assignment(cls: type, field: Field[Any], names: dict[str, Any], *, is_frozen: bool) -> str:
    name = value = field.name
    if field.default_factory is not MISSING:
        value = f"_make_{name}()" + (f" if {name} is _unset else {name}" if field.init else "")
        names[f"_make_{name}"] = field.default_factory
    elif not field.init:
        return ""  # `__post_init__` sets it
    if not is_frozen:
        return f"self.{name} = {value}"
    slot = getattr(cls, name, None)
    if isinstance(slot, MemberDescriptorType):
        names[f"_set_{name}"] = slot.__set__
        return f"_set_{name}(self, {value})"
    return f"_set(self, {name!r}, {value})"
