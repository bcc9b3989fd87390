"""Workflows named on the command line: the module or file, the function, its arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from agentflow.cli.suggestion import hint_for
from agentflow.codec import from_json, type_name
from agentflow.dataclass import dataclass
from agentflow.engine.definitions import REGISTRY, Workflow
from agentflow.errors import (
    AgentflowError,
    DecodeError,
    InputError,
    LoadError,
    UnknownWorkflowError,
    UsageError,
)
from agentflow.settings import read_settings


@dataclass(frozen=True, slots=True)
class Target:
    """What ``MODULE_OR_FILE:WORKFLOW`` names.

    Attributes:
        source: The module or file, as it was given.
        workflow: The workflow.
    """

    source: str
    workflow: Workflow[..., Any]


def load_target(text: str) -> Target:
    """Import the module or file and return its workflow.

    Args:
        text: ``MODULE_OR_FILE:WORKFLOW``; the name may be left out where there is one workflow.

    Raises:
        LoadError: it cannot be imported.
        UnknownWorkflowError: it has no such workflow.
    """
    source, colon, name = text.rpartition(":")
    if not colon:
        source, name = text, ""
    module = load_module(source)
    mine = workflows_of(module)
    if name:
        return Target(source, pick(source, mine, name, getattr(module, name, None)))
    if len(mine) == 1:
        return Target(source, next(iter(mine.values())))
    msg = f"{source} defines {len(mine)} workflows; say which" if mine else no_workflow(source)
    names = ", ".join(f"{source}:{n}" for n in sorted(mine))
    raise UnknownWorkflowError(msg, hint=f"One of: {names}." if mine else "")


def no_workflow(source: str) -> str:
    """Return what is said of a file without a workflow."""
    return f"{source} defines no workflow"


def workflows_of(module: ModuleType) -> dict[str, Workflow[..., Any]]:
    """Return the workflows that *module* has, by their names in it."""
    return {n: v for n, v in vars(module).items() if isinstance(v, Workflow)}


def pick(
    source: str, mine: dict[str, Workflow[..., Any]], name: str, found: object
) -> Workflow[..., Any]:
    """Return the workflow *name* of a module, by its name there or its registered name.

    Raises:
        UnknownWorkflowError: there is none.
    """
    by_name = {**{w.name: w for w in mine.values()}, **mine}
    if name in by_name:
        return by_name[name]
    if found is not None:
        msg = f"{name!r} in {source} is no workflow but a {type(found).__name__}"
        raise UnknownWorkflowError(msg, hint="Decorate the function with @agentflow.workflow.")
    known = ", ".join(sorted(by_name))
    msg = f"there is no workflow {name!r} in {source}"
    raise UnknownWorkflowError(
        msg, hint=hint_for(name, sorted(by_name), f"It has: {known}." if known else "It has none.")
    )


def load_apps(apps: Iterable[str]) -> None:
    """Import the modules and files that were given, and those of the setting ``modules``.

    Raises:
        LoadError: one of them cannot be imported.
    """
    for source in dict.fromkeys((*apps, *read_settings().modules)):
        load_module(source.partition(":")[0])


def need_workflow(name: str, *, run_id: str) -> Workflow[..., Any]:
    """Return the workflow of a run.

    Raises:
        UnknownWorkflowError: no module that was imported defines it.
    """
    if name in REGISTRY.workflows:
        return REGISTRY.workflows[name]
    known = ", ".join(sorted(REGISTRY.workflows)) or "none"
    msg = f"run {run_id} needs the workflow {name!r}, which is not imported (imported: {known})"
    hint = "Name the file that defines it: --app FILE, or the setting AGENTFLOW_MODULES."
    raise UnknownWorkflowError(msg, hint=hint)


def load_module(source: str) -> ModuleType:
    """Import a module by its dotted name, or a file by its path.

    Raises:
        LoadError: there is none, or importing it raises.
    """
    is_file = source.endswith(".py") or "/" in source or Path(source).is_file()
    if not source:
        msg = "name a module or a file before the colon"
        raise LoadError(msg, hint="For example: agentflow run examples/research.py:research")
    path = Path(source)
    if is_file and not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = hint_for(source, near, "Give the path from this directory.")
        msg = f"there is no file {source}"
        raise LoadError(msg, hint=hint)
    try:
        return import_file(path) if is_file else import_name(source)
    except AgentflowError:
        raise
    except (Exception, SystemExit) as error:
        raise as_load_error(source, error) from error


def import_name(name: str) -> ModuleType:
    """Import a module as ``python -m`` in this directory would find it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def import_file(path: Path) -> ModuleType:
    """Import a file: by its dotted name where it is part of a package, else by its own name."""
    path = path.resolve()
    parts, root = [path.stem], path.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if len(parts) > 1:
        return importlib.import_module(".".join(p for p in parts if p != "__init__"))
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    # A file may be called like a module of the library, or of another app: neither is replaced.
    taken = known is not None or path.stem in sys.stdlib_module_names
    name = f"agentflow_app_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{path} is no Python file"
        raise LoadError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def as_load_error(source: str, error: BaseException) -> LoadError:
    """Return what went wrong while *source* was imported, with its place."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (source == missing or source.startswith(f"{missing}.")):
        near = [p.stem for p in Path.cwd().glob("*.py")]
        hint = hint_for(source, near, "Give a module that Python finds from here, or a file.")
        return LoadError(f"there is no module {missing!r}", hint=hint)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    inner = [f for f in frames if not f.filename.startswith(str(Path(__file__).parent))]
    place = f" ({inner[-1].filename}, line {inner[-1].lineno})" if inner else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    hint = "Mend the file; --debug shows the whole traceback."
    return LoadError(f"{source} cannot be imported: {what}{place}", hint=hint)


# -- arguments


def read_json(text: str, what: str) -> Any:
    """Return the JSON of an option: the text itself, ``@FILE``, or ``-`` for stdin.

    Raises:
        InputError: it is no JSON; the message has the place.
    """
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            msg = f"{what}: {text[1:]} cannot be read: {e}"
            raise InputError(msg) from e
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        shown = text[max(0, e.pos - 10) : e.pos + 10].replace("\n", " ")
        msg = f"{what} is no JSON: {e.msg} at line {e.lineno} column {e.colno}, near {shown!r}"
        hint = "Strings need double quotes inside the shell's single ones: '\"text\"'."
        raise InputError(msg, hint=hint) from None


def arguments_of(
    workflow: Workflow[..., Any], words: Sequence[str], given: str | None
) -> dict[str, Any]:
    """Return a workflow's arguments by name, decoded by its annotations.

    Args:
        workflow: The workflow.
        words: Arguments as words: JSON, or text; ``name=value`` for one by name.
        given: ``--input``. An object of the parameters' names holds them all; an array holds
            them in order where there are several; anything else is the first argument.

    Raises:
        InputError: they do not fit the workflow.
    """
    if given is not None and words:
        msg = "give --input or arguments, not both"
        raise UsageError(msg)
    usage = f"The workflow is {usage_of(workflow)}."
    value = read_json(given, "--input") if given is not None else None
    try:
        is_given = given is not None
        bound = from_input(workflow, value) if is_given else from_words(workflow, words)
        check_complete(workflow, bound)
        notes = workflow.annotations
        return {
            name: from_json(value, notes.get(name, Any), f"argument {name}")
            for name, value in bound.items()
        }
    except InputError:
        raise
    except (DecodeError, UsageError) as e:
        if strange := strange_names(workflow, value):
            msg = f"{workflow.name} has no argument {', '.join(map(repr, strange))}"
            raise InputError(msg, hint=usage) from e
        if isinstance(e, DecodeError):
            raise InputError(e.message, hint=usage, data=e.data) from e
        # The signature is in the hint, readable.
        said = e.message.removeprefix(f"{workflow.name}{workflow.signature}: ")
        raise InputError(f"{workflow.name}: {said}", hint=usage) from e


def strange_names(workflow: Workflow[..., Any], value: Any) -> list[str]:
    """Return the names in ``--input`` that no argument has, where others are arguments' names."""
    names = set(workflow.signature.parameters)
    return sorted(set(value) - names) if isinstance(value, dict) and names & set(value) else []


def usage_of(workflow: Workflow[..., Any]) -> str:
    """Return a workflow's name and parameters as its file has them, with real types."""
    notes = workflow.annotations
    typed = [
        p.replace(annotation=p.empty if notes[n] is Any else _Shown(type_name(notes[n])))
        for n, p in workflow.signature.parameters.items()
    ]
    return f"{workflow.name}{inspect.Signature(typed)}"


class _Shown:
    """An annotation that is written without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        """Return the text."""
        return self._text


def from_input(workflow: Workflow[..., Any], value: Any) -> dict[str, Any]:
    """Return the arguments by name that one JSON value means."""
    names = set(workflow.signature.parameters)
    if isinstance(value, dict) and value and set(value) <= names:
        return dict(value)
    if isinstance(value, list) and len(names) > 1:
        return workflow.bind(tuple(value), {})
    if value is None and not names:
        return {}
    return workflow.bind((value,), {})


def from_words(workflow: Workflow[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments by name that words mean."""
    parameters = workflow.signature.parameters
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in parameters:
            kwargs[name] = word_value(workflow.annotations.get(name, Any), value)
            continue
        place = list(parameters)[len(args)] if len(args) < len(parameters) else ""
        args.append(word_value(workflow.annotations.get(place, Any), word))
    return workflow.bind(tuple(args), kwargs)


def word_value(annotation: Any, word: str) -> Any:
    """Return a word as text where text is wanted, else as the JSON that it is."""
    if annotation is str:
        return word
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def check_complete(workflow: Workflow[..., Any], bound: dict[str, Any]) -> None:
    """Raise UsageError unless every argument that has no default is there."""
    args, kwargs = workflow.call_arguments(bound)
    workflow.bind(tuple(args), kwargs)
