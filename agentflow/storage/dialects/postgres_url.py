"""Where a PostgreSQL database is: the URL in parts, and what of it may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field

import psycopg
from psycopg.conninfo import conninfo_to_dict

from agentflow.dataclass import dataclass
from agentflow.errors import SettingsError

FORMS = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
PREFIX = re.compile(r"^postgres(ql)?(\+psycopg)?://")
SCHEMA = re.compile(r"[?&]schema=([^&]*)")
NAME = re.compile(r"^[a-z_][a-z0-9_]{0,62}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A database.

    Attributes:
        parts: Keywords of libpq; the password is among them.
        schema: The schema that holds the tables; "" = the first of the search path.
        shown: The address for people: without a password.
    """

    parts: Mapping[str, str] = field(repr=False)
    schema: str
    shown: str


def address(url: str) -> Address:
    """Return the parts of *url*.

    Raises:
        SettingsError: it has no meaning; the message does not repeat it, for it has a password.
    """
    if not PREFIX.match(url):
        msg = "the database URL does not begin with postgresql://"
        raise SettingsError(msg, hint=f"Write {FORMS}.")
    found = SCHEMA.search(url)
    schema = found[1] if found else ""
    if schema and not NAME.match(schema):
        msg = f"{schema!r} is no schema's name"
        raise SettingsError(msg, hint="Use lower-case letters, digits and _.")
    rest = PREFIX.sub("postgresql://", SCHEMA.sub(_left, url))
    try:
        parts = {k: str(v) for k, v in conninfo_to_dict(rest).items() if v is not None}
    except psycopg.ProgrammingError:
        msg = "the database URL cannot be read"
        raise SettingsError(msg, hint=f"Write {FORMS}; mask special characters as %XX.") from None
    if _is_misread(rest.removeprefix("postgresql://"), parts):
        msg = (
            "the database URL is ambiguous: a special character is not masked, or the port is none"
        )
        raise SettingsError(msg, hint=f"Write {FORMS}; in USER and PASSWORD %40 is @, %2F is /.")
    host = parts.get("host") or "localhost"
    shown = f"{host}:{parts.get('port', '5432')}/{parts.get('dbname', '')}"
    return Address(parts=parts, schema=schema, shown=shown)


def _is_misread(rest: str, parts: Mapping[str, str]) -> bool:
    """Return whether a piece of a password may have become a host, a port or a name."""
    head = rest.partition("?")[0]
    account, at, place = head.partition("@")
    return (
        "@" in place
        or (bool(at) and "/" in account)
        or "@" in parts.get("host", "")[1:]
        or re.fullmatch(r"[0-9,]*", parts.get("port", "")) is None
    )


def _left(found: re.Match[str]) -> str:
    """Return what is left of ``?schema=x`` where more follows."""
    follows = found.string[found.end() :].startswith("&")
    return "?" if found[0].startswith("?") and follows else ""
