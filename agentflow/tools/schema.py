"""A function's signature and docstring, made into what a model needs to call it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from functools import lru_cache
from types import FrameType, SimpleNamespace, UnionType
from typing import Annotated, Any, Union, Unpack, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from agentflow.dataclass import dataclass
from agentflow.errors import ToolArgumentsError, UsageError
from agentflow.tools.docstring import Docstring, parse_docstring
from agentflow.tools.misfit import MisfitError, read_json
from agentflow.tools.strict import Schema, strict_schema, without_titles

__all__ = ["ToolSchema", "json_schema", "strict_schema", "tool_schema", "validate_arguments"]

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Names that both vendors take. Source: the API references of openai and anthropic."""

_NO_SCHEMA = (
    PydanticSchemaGenerationError,
    PydanticInvalidForJsonSchema,
    PydanticUserError,
    TypeError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSchema:
    """What a model is told of a function, and what its arguments are checked against.

    Attributes:
        name: The tool's name.
        description: What it does, for the model; "" where nobody said.
        parameters: JSON Schema of an object: no titles, no further properties.
        annotations: Type by parameter name, as resolved; those left out are not in it.
        required: Names of the parameters without a default, in order.
        injected: Type by name of the parameters that were left out of the schema.
        model: What checks the arguments; its fields are numbered, the names are aliases.
        filled: Names that are always passed on: those without a default in the signature.
    """

    name: str
    description: str
    parameters: Schema
    annotations: Mapping[str, Any]
    required: tuple[str, ...]
    injected: Mapping[str, type] = field(default_factory=dict)
    model: type[BaseModel] = field(repr=False, compare=False)
    filled: frozenset[str] = field(default=frozenset(), repr=False, compare=False)


class _Quiet(GenerateJsonSchema):
    """JSON Schema generation that leaves out a default without JSON form, in silence."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 -- as in the base


def json_schema(adapter: TypeAdapter[Any], *, mode: JsonSchemaMode = "validation") -> Schema:
    """Return the JSON Schema of a type, without titles; its root is never a bare ``$ref``.

    Args:
        adapter: The type.
        mode: ``validation`` (what is read) or ``serialization`` (what is written).

    Returns:
        The schema, with ``$defs`` where types are used more than once or in themselves.
    """
    schema: Schema = without_titles(adapter.json_schema(mode=mode, schema_generator=_Quiet))
    ref = schema.get("$ref")
    if isinstance(ref, str):  # a type that holds itself
        schema = {**schema["$defs"][ref.rpartition("/")[2]], "$defs": schema["$defs"]}
    return schema


def tool_schema(
    fn: Callable[..., object],
    *,
    name: str | None = None,
    description: str | None = None,
    skip: Collection[type] = (),
) -> ToolSchema:
    """Return what a model needs to call *fn*.

    Types come from annotations (a parameter without one takes anything), descriptions from the
    docstring in Google, NumPy or Sphinx style, or from ``Annotated[T, Field(description=…)]``.

    Args:
        fn: A function, sync or async.
        name: The tool's name; the function's own where None.
        description: What it does; the docstring up to its first section where None.
        skip: Types whose parameters are no part of the schema (they go to `injected`).

    Returns:
        The schema.

    Raises:
        UsageError: a name that vendors refuse, ``*args``, a positional-only parameter, an
            annotation that cannot be resolved, or a type that has no JSON Schema.
    """
    name = name if name is not None else getattr(fn, "__name__", type(fn).__name__)
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a tool", hint="Give name=: 1 to 64 letters, digits, _ or -."
        )
    hints = _annotations(fn, name)
    said = parse_docstring(inspect.getdoc(fn) if _is_function(fn) else inspect.getdoc(type(fn)))
    taken: dict[str, inspect.Parameter] = {}
    injected: dict[str, type] = {}
    for parameter in inspect.signature(fn).parameters.values():
        _refuse_positional(parameter, name)
        found = _skipped(hints[parameter.name], skip)
        if found is None:
            taken[parameter.name] = parameter
        else:
            injected[parameter.name] = found
    model = _model(name, taken, hints, said)
    fields = [p for p in taken.values() if p.kind is not p.VAR_KEYWORD]
    parameters = _parameters(name, model, {p.name: hints[p.name] for p in taken.values()})
    return ToolSchema(
        name=name,
        description=said.description if description is None else description,
        parameters=parameters,
        annotations={p.name: hints[p.name] for p in fields},
        required=tuple(parameters.get("required", ())),
        injected=injected,
        model=model,
        filled=frozenset(p.name for p in fields if not _has_own_default(p)),
    )


def validate_arguments(schema: ToolSchema, arguments_json: str) -> dict[str, Any]:
    """Return the arguments that a model wrote, as values of the function's types.

    Args:
        schema: The tool's schema.
        arguments_json: JSON text exactly as the model wrote it; "" is taken as ``{}``.

    Returns:
        Values by parameter name, for ``fn(**values)``. Parameters that the model left out are
        left out, so that the function's own defaults apply; so is a null for a parameter that
        may be left out and may not be None.

    Raises:
        ToolArgumentsError: the text is no JSON object, or an argument does not fit. The message
            is for the model: the tool's name, then a line ``path: message; got …`` per misfit.
    """
    try:
        model = read_json(arguments_json.strip() or "{}", _adapter(schema.model), schema.parameters)
    except MisfitError as e:
        message = f"The arguments of {schema.name} do not fit:\n{e}"
        raise ToolArgumentsError(message, data={"tool": schema.name}) from e
    given = model.model_fields_set
    values = {
        info.alias or key: getattr(model, key)
        for key, info in type(model).model_fields.items()
        if key in given or info.alias in schema.filled
    }
    return {**values, **(model.model_extra or {})}


@lru_cache(maxsize=1024)
def _adapter(model: type[BaseModel]) -> TypeAdapter[BaseModel]:
    return TypeAdapter(model)


def _is_function(fn: Callable[..., object]) -> bool:
    return inspect.isroutine(inspect.unwrap(fn))


def _has_own_default(parameter: inspect.Parameter) -> bool:
    default = parameter.default
    return default is not parameter.empty and not isinstance(default, FieldInfo)


def _refuse_positional(parameter: inspect.Parameter, tool: str) -> None:
    if parameter.kind is parameter.VAR_POSITIONAL:
        raise UsageError(
            f"tool {tool}: *{parameter.name} cannot be called by name",
            hint=f"Take a list: {parameter.name}: list[…].",
        )
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise UsageError(
            f"tool {tool}: {parameter.name} is positional-only; models call by name",
            hint="Remove the / from the signature.",
        )


# -- annotations


def _annotations(fn: Callable[..., object], tool: str) -> dict[str, Any]:
    """Return the resolved annotation of each parameter; Any where there is none."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError, NameError) as e:
        raise UsageError(f"tool {tool}: its signature cannot be read: {e}") from e
    inner = inspect.unwrap(getattr(fn, "__func__", fn))
    if not inspect.isfunction(inner):
        inner = getattr(type(inner), "__call__", inner)  # noqa: B004 -- its annotations are wanted
    globals_ = getattr(inner, "__globals__", {})
    return {
        p.name: Any if p.annotation is p.empty else _resolve(p, globals_, tool) for p in parameters
    }


def _resolve(parameter: inspect.Parameter, globals_: dict[str, Any], tool: str) -> Any:
    """Return one annotation, evaluated where it is text (``from __future__ import annotations``).

    Types that are local to the function around the tool are found in its frame, while it runs.
    """
    holder = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return get_type_hints(holder, globals_, {}, include_extras=True)["it"]
    except (NameError, AttributeError):
        pass
    try:
        return get_type_hints(holder, globals_, _locals_around(globals_), include_extras=True)["it"]
    except (NameError, AttributeError, TypeError, SyntaxError) as e:
        raise UsageError(
            f"tool {tool}: the annotation {parameter.annotation!r} of {parameter.name} is not "
            f"known: {e}",
            hint="Define the type before the tool, at the top of its module.",
        ) from e


def _locals_around(globals_: dict[str, Any]) -> dict[str, Any]:
    """Return the local names of the running functions of that module, inner ones first."""
    frames: list[FrameType] = []
    frame = sys._getframe(1)  # noqa: SLF001 -- pydantic and typing find local types so, too
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals is globals_:
            frames.append(frame)
    return {name: value for frame in reversed(frames) for name, value in frame.f_locals.items()}


def _skipped(annotation: Any, skip: Collection[type]) -> type | None:
    """Return the type of *skip* that the annotation is, bare, optional or annotated."""
    is_around = get_origin(annotation) in {Annotated, Union, UnionType}
    for option in (annotation, *(get_args(annotation) if is_around else ())):
        if inspect.isclass(option) and issubclass(option, tuple(skip)):
            return option
    return None


# -- the model


def _model(
    tool: str, taken: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], said: Docstring
) -> type[BaseModel]:
    """Return a pydantic model of the arguments.

    Its fields are numbered and named by alias: a parameter may be called ``json`` or ``_x``.
    """
    fields: dict[str, Any] = {}
    base: type[BaseModel] | None = None
    for number, parameter in enumerate(taken.values()):
        hint = hints[parameter.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            base = _open(hint, tool, parameter.name)
        else:
            fields[f"p{number}"] = _field(parameter, hint, said.parameters.get(parameter.name))
    try:
        if base is not None:
            return create_model(f"{tool}_arguments", __base__=base, **fields)
        closed = ConfigDict(extra="forbid")
        return create_model(f"{tool}_arguments", __config__=closed, **fields)
    except _NO_SCHEMA as e:
        raise _no_schema(tool, {p.name: hints[p.name] for p in taken.values()}, e) from e


def _open(hint: Any, tool: str, parameter: str) -> type[BaseModel]:
    """Return a base that takes further arguments, each of the type of ``**kwargs``."""
    if get_origin(hint) is Unpack:
        raise UsageError(
            f"tool {tool}: **{parameter} has an unpacked type",
            hint="Write its keys as parameters, or take one parameter of that type.",
        )
    made = {
        "__module__": __name__,
        "__annotations__": {"__pydantic_extra__": dict[str, hint]},
        "model_config": ConfigDict(extra="allow"),
    }
    return type("_Open", (BaseModel,), made)


def _field(parameter: inspect.Parameter, hint: Any, description: str | None) -> tuple[Any, Any]:
    """Return (annotation, field) of one parameter."""
    default = parameter.default
    if isinstance(default, FieldInfo):  # limit: int = Field(5, le=10)
        hint = Annotated[hint, default]
    own = any(isinstance(m, FieldInfo) and m.description for m in getattr(hint, "__metadata__", ()))
    more: dict[str, Any] = {} if own or not description else {"description": description}
    if _has_own_default(parameter):
        more["default"] = default
    return hint, Field(alias=parameter.name, **more)


def _parameters(tool: str, model: type[BaseModel], hints: Mapping[str, Any]) -> Schema:
    try:
        schema = json_schema(_adapter(model))
    except _NO_SCHEMA as e:
        raise _no_schema(tool, hints, e) from e
    schema.pop("description", None)
    schema.setdefault("properties", {})
    return schema


def _no_schema(tool: str, hints: Mapping[str, Any], error: Exception) -> UsageError:
    """Return an error that names the first parameter whose type has no JSON Schema."""
    for parameter, hint in hints.items():
        try:
            json_schema(TypeAdapter(hint))
        except _NO_SCHEMA as e:
            kind = getattr(hint, "__qualname__", str(hint))
            return UsageError(
                f"tool {tool}: parameter {parameter} ({kind}) has no JSON Schema: "
                f"{str(e).splitlines()[0]}",
                hint="Use JSON types, dataclasses or pydantic models; or hold the object outside "
                "and pass its name.",
            )
    return UsageError(f"tool {tool}: its parameters have no JSON Schema: {error}")
