"""The URL of a database: what it may look like, and what of it may be shown.

A URL holds a password, and one that is mistyped holds it where nobody looks for it. So whatever
writes a URL, or a part of one that was not understood, takes it from here.
"""

from __future__ import annotations

import re

from agentflow.errors import SettingsError

POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
KNOWN = ("sqlite", *POSTGRES)
HINT = "Write a file's name, sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE."

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_FORGOTTEN = re.compile(
    r"(sqlite|postgres|mysql|mariadb|oracle|mssql|mongodb)[a-z0-9+]*:", re.IGNORECASE
)
_KEYWORDS = re.compile(
    r"\s*(host|hostaddr|port|dbname|user|password|service|sslmode)\s*=", re.IGNORECASE
)
_USER = re.compile(r"([^\s:/?#@]*):[^\s/?#@]*")
_IN_QUERY = re.compile(r"(\b(?:ssl)?password\s*=\s*)('[^']*'?|[^&\s]*)", re.IGNORECASE)
_IN_TEXT = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*:/[^\s'"]*@[^\s'"]*""")


def shown_url(url: str) -> str:
    """Return a database's URL as it may be shown: reports are pasted into issues.

    Nothing between the scheme and the last ``@`` is in it, except a user where that is clearly one.

    >>> shown_url("postgresql://ann:secret@db/agentflow?password=secret&sslmode=require")
    'postgresql://ann:***@db/agentflow?password=***&sslmode=require'
    >>> shown_url("postgresql:/ann:sec@ret@db/agentflow")
    'postgresql:/***@db/agentflow'
    """
    head, at, rest = _IN_QUERY.sub(r"\1***", url).rpartition("@")
    if not at:
        return rest
    scheme, slashes, account = _parts(head)
    if not slashes:
        return f"***@{rest}"
    user = _USER.fullmatch(account)
    if user:
        return f"{scheme}{slashes}{user[1]}:***@{rest}"
    is_user = slashes == "://" and re.fullmatch(r"[^\s:/?#@]*", account)
    return f"{scheme}{slashes}{account if is_user else '***'}@{rest}"


def _parts(head: str) -> tuple[str, str, str]:
    found = re.match(rf"({_SCHEME.pattern})(:/+)", head)
    return (found[1], found[2], head[found.end() :]) if found else ("", "", head)


def without_secrets(text: str) -> str:
    """Return a message with the URLs in it as they may be shown.

    >>> without_secrets("unexpected argument (postgresql://ann:secret@db/runs)")
    'unexpected argument (postgresql://ann:***@db/runs)'
    """
    return _IN_TEXT.sub(lambda found: shown_url(found[0]), text)


def checked_url(database: str) -> str:
    """Return the URL of *database*, which may be a file's name.

    Raises:
        SettingsError: it is neither; the message does not repeat it.

    >>> checked_url("runs.db"), checked_url("postgresql:///runs")
    ('sqlite:///runs.db', 'postgresql:///runs')
    """
    scheme, colon, rest = database.partition("://")
    if not colon:
        return f"sqlite:///{_file(database)}"
    if not _SCHEME.fullmatch(scheme):
        msg = "the database URL does not begin with the kind of a database"
        raise SettingsError(msg, hint=HINT)
    if scheme not in KNOWN:
        msg = f"database {scheme!r} is not known"
        raise SettingsError(msg, hint=HINT)
    if scheme == "sqlite" and rest and not rest.startswith(("/", "?")):
        msg = "a file's URL has three slashes, or four where its path begins with one"
        raise SettingsError(msg, hint="Write sqlite:///FILE, or only the file's name.")
    return database


def _file(name: str) -> str:
    if not name.strip():
        msg = "the database has no name"
        raise SettingsError(msg, hint=HINT)
    if found := _FORGOTTEN.match(name):
        msg = f"the database URL has no :// behind {found[0].rstrip(':')!r}"
    elif _KEYWORDS.match(name):
        msg = "the database is given by keywords, not by its URL"
    elif ":" in name.partition("@")[0] and "@" in name:
        msg = "the database URL does not begin with the kind of a database"
    else:
        return name
    raise SettingsError(msg, hint=HINT)
