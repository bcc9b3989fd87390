"""The only reader of the environment: flag > environment > pyproject.toml > default."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any

from agentflow.codec import MAX_PAYLOAD_BYTES
from agentflow.dataclass import dataclass
from agentflow.errors import SettingsError
from agentflow.loading import load

_PREFIX = "AGENTFLOW_"
_BEATS_PER_LEASE = 3  # so that one that gets lost costs nobody a run
TABLES = frozenset({"queues", "rates"})
"""Settings with parts: a file has room for them, a variable has not."""

# Values of variables that are named like this are scrubbed from everything that is written.
_SECRET_NAMES = ("_API_KEY", "_ADMIN_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_ENCRYPTION_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set from outside; each is ``AGENTFLOW_<NAME>`` or ``[tool.agentflow] <name>``.

    Attributes:
        database_url: Where runs are kept.
        project: Scope of ids, caches and keys.
        durability: ``full`` survives a power cut, ``process`` only the death of a process.
        encryption_key: Key text of `agentflow.crypto.new_key`, ``DIGEST.DATA``: bodies are
            encrypted (extra ``crypto``).
        max_payload_bytes: Largest value that is recorded, in bytes of JSON.
        quarantine_after: Number of workers that a run may kill in a row; 0 = no limit.
        lease_seconds: On a shared database: after how long without a beat other workers take a
            worker's runs over, in seconds.
        beat_seconds: Time between a worker's beats, in seconds; a third of the lease or less.
        background: Whether OpenAI works on answers without a connection, so that a call in flight
            survives a crash: ``on``, ``off``, or unset (at api.openai.com only). A choice of
            privacy too: the vendor stores such answers; see `ModelSettings.background`.
        modules: Modules and files of workflows that the command line imports; in the
            environment separated by commas. Files are relative to `pyproject.toml`.
        prices: TOML file of negotiated prices (`agentflow.ledger.overlay_file` shows one); in
            `pyproject.toml` relative to it.
        queues: Limits of queues by name, in `pyproject.toml` only:
            ``[tool.agentflow.queues.NAME]`` with ``concurrency`` and ``per_key``.
        rates: Rates by model and key (``""`` = all calls together), in `pyproject.toml` only:
            ``[tool.agentflow.rates."PROVIDER:NAME"]`` with ``requests_per_minute`` and
            ``tokens_per_minute``; those of a key in
            ``[tool.agentflow.rates."PROVIDER:NAME".keys.KEY]``.
        reports_url: Address of the vendor's API for `agentflow reconcile --live`, where it is not
            the usual one. Its key is ``OPENAI_ADMIN_KEY`` or ``ANTHROPIC_ADMIN_KEY``.
        secrets: Known secret values by name; scrubbed before anything is written.
    """

    database_url: str = "sqlite:///agentflow.db"
    project: str = "default"
    durability: str = "full"
    encryption_key: str = field(default="", repr=False)
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    quarantine_after: int = 3
    lease_seconds: float = 15.0
    beat_seconds: float = 5.0
    background: bool | None = None
    modules: tuple[str, ...] = ()
    prices: str = ""
    queues: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rates: Mapping[tuple[str, str], Mapping[str, int]] = field(default_factory=dict)
    reports_url: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def with_flags(self, **flags: Any) -> Settings:
        """Return these settings with the flags that were given (None = not given)."""
        return replace(self, **{k: v for k, v in flags.items() if v is not None})


def read_settings(
    environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> Settings:
    """Return the settings of this process.

    Args:
        environ: The environment; the process's own by default.
        directory: Where `pyproject.toml` is looked for, upwards; the current one by default.

    Raises:
        SettingsError: a value has no meaning.
    """
    env = os.environ if environ is None else environ
    found: dict[str, Any] = dict(_from_file(directory or Path.cwd()))
    known = {f.name: f for f in fields(Settings) if f.name != "secrets"}
    for name in known:
        text = env.get(_PREFIX + name.upper())
        if text and name not in TABLES:
            found[name] = text
    if unknown := set(found) - set(known):
        msg = f"[tool.agentflow] has unknown settings: {', '.join(sorted(unknown))}"
        raise SettingsError(msg, hint=f"Known are: {', '.join(sorted(known))}.")
    for name, read in _READERS.items():
        if name in found:
            found[name] = read(name, found[name])
    if not isinstance(found.get("prices", ""), str):
        msg = f"prices is {found['prices']!r}"
        raise SettingsError(msg, hint="Use the name of a TOML file.")
    if found.get("durability", "full") not in {"full", "process"}:
        msg = f"durability is {found['durability']!r}"
        raise SettingsError(msg, hint="Use full or process.")
    secrets = {k: v for k, v in env.items() if k.upper().endswith(_SECRET_NAMES) and v}
    made = Settings(**found, secrets=secrets)
    if made.beat_seconds * _BEATS_PER_LEASE > made.lease_seconds:
        msg = f"a beat every {made.beat_seconds} s does not keep a lease of {made.lease_seconds} s"
        raise SettingsError(msg, hint="Use a third of lease_seconds, or less.")
    return made


def environment_with(**values: str) -> dict[str, str]:
    """Return this process's environment for a child, with *values* and without our own settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_PREFIX)}
    return {**kept, **values}


def _number(name: str, value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0:
        msg = f"{name} is {value!r}"
        raise SettingsError(msg, hint="Use a whole number, zero or more.")
    return number


def _seconds(name: str, value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        msg = f"{name} is {value!r}"
        raise SettingsError(msg, hint="Use a number of seconds, more than zero.")
    return seconds


def _switch(name: str, value: object) -> bool:
    known = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    found = known.get(str(value).lower())
    if found is None:
        msg = f"{name} is {value!r}"
        raise SettingsError(msg, hint="Use on or off.")
    return found


def _queue_limits(name: str, value: object) -> dict[str, dict[str, int]]:
    """Return the limits of queues by the queues' names."""
    return _numbers(name, value, ("concurrency", "per_key"), place=f"{name}.NAME")


def _rate_limits(name: str, value: object) -> dict[tuple[str, str], dict[str, int]]:
    """Return rates by model and key."""
    known = ("requests_per_minute", "tokens_per_minute")
    place = f'{name}."PROVIDER:NAME"'
    found: dict[tuple[str, str], dict[str, int]] = {}
    for model, limits in _tables(name, value, f"Write [tool.agentflow.{place}].").items():
        provider, colon, own = model.partition(":")
        if not (provider and colon and own):
            msg = f"{name}.{model} is not written provider:name"
            raise SettingsError(msg, hint=f"Write [tool.agentflow.{place}], with the quotes.")
        of_all = {key: one for key, one in limits.items() if key != "keys"}
        found[model, ""] = _numbers(name, {model: of_all}, known, place=place)[model]
        of_keys = f"{name}.{model}.keys"
        by_key = _numbers(of_keys, limits.get("keys", {}), known, place=f"{place}.keys.KEY")
        found |= {(model, key): one for key, one in by_key.items()}
    return found


def _numbers(
    name: str, value: object, known: Sequence[str], *, place: str
) -> dict[str, dict[str, int]]:
    """Return tables of whole numbers by the tables' names."""
    hint = f"Write [tool.agentflow.{place}] with {' and '.join(known)}."
    tables = _tables(name, value, hint)
    for table, limits in tables.items():
        if unknown := sorted(limits.keys() - set(known)):
            msg = f"{name}.{table} has unknown settings: {', '.join(unknown)}"
            raise SettingsError(msg, hint=hint)
    return {
        table: {key: _number(f"{name}.{table}.{key}", one) for key, one in limits.items()}
        for table, limits in tables.items()
    }


def _tables(name: str, value: object, hint: str) -> dict[str, dict[str, object]]:
    if isinstance(value, dict) and all(isinstance(one, dict) for one in value.values()):
        return value
    msg = f"{name} is {value!r}"
    raise SettingsError(msg, hint=hint)


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word for word in (part.strip() for part in value.split(",")) if word)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    msg = f"{name} is {value!r}"
    raise SettingsError(msg, hint="Use a list of module names and files.")


_READERS: dict[str, Callable[[str, object], Any]] = {
    "max_payload_bytes": _number,
    "quarantine_after": _number,
    "lease_seconds": _seconds,
    "beat_seconds": _seconds,
    "background": _switch,
    "queues": _queue_limits,
    "rates": _rate_limits,
    "modules": _names,
}


def _from_file(start: Path) -> Mapping[str, Any]:
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if file.is_file():
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                return {}  # somebody else's broken file; their own tools will say so
            data = _parsed(file, text) if "agentflow" in text else {}  # most need no parser
            section = data.get("tool", {}).get("agentflow", {})
            return _placed(section, folder) if isinstance(section, dict) else {}
    return {}


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        data: dict[str, Any] = load("tomllib").loads(text)
    except ValueError as e:
        if "[tool.agentflow" not in text:
            return {}
        msg = f"{file} is no TOML: {e}"
        hint = 'Names with a colon are quoted: [tool.agentflow.rates."openai:gpt-6"].'
        raise SettingsError(msg, hint=hint) from None
    return data


def _placed(section: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return *section* with the files that it names as paths from *folder*."""
    if isinstance(section.get("prices"), str) and section["prices"]:
        section = {**section, "prices": str(folder / section["prices"])}
    modules = section.get("modules")
    if not isinstance(modules, list):
        return section
    placed = [str(folder / m) if str(m).endswith(".py") else m for m in modules]
    return {**section, "modules": placed}
