"""What a database's URL may look like, and that no password of one is ever shown."""

from __future__ import annotations

import pytest

from agentflow.database_url import checked_url, shown_url, without_secrets
from agentflow.errors import SettingsError
from agentflow.storage.dialects.postgres_url import address

SECRET = "sEcret"
WRONG = [
    f"postgresql:/u:{SECRET}@host/db",
    f"postgresql:u:{SECRET}@host/db",
    f"postgres:{SECRET}",
    f"u:{SECRET}@host/db",
    f"u:{SECRET}@://host/db",
    f"mysql:/u:{SECRET}@host/db",
    f"host=db user=u password={SECRET}",
    f"postgresql://u:x@{SECRET}@127.0.0.1:abc/x",
    f"postgresql://u:x@{SECRET}@127.0.0.1/x",
    f"postgresql://u:x/{SECRET}@127.0.0.1/x",
    f"postgresql://u:{SECRET}/db",
    f"postgresql://u:a?{SECRET}@b@host/db",
    f"postgresql://u:a?{SECRET}/b@host/db",
    f"postgresql://u:a%{SECRET}@host/db",
]


@pytest.mark.parametrize("url", WRONG)
def test_a_mistyped_url_is_refused_and_not_repeated(url: str) -> None:
    """It is no file's name either: nobody wants a file that is named like a password."""
    with pytest.raises(SettingsError) as caught:
        address(checked_url(url))

    assert caught.value.hint
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("url", [url for url in WRONG if "@" in url or "=" in url])
def test_no_password_is_shown(url: str) -> None:
    """Wherever the ``@`` is, or how many there are."""
    assert SECRET not in shown_url(url)
    assert not url.startswith("postgresql:/") or SECRET not in without_secrets(f"no ({url})")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@db:5432/runs?schema=x", "postgresql://ann:***@db:5432/runs?schema=x"),
        ("postgresql://ann@db/runs", "postgresql://ann@db/runs"),
        ("postgresql:///runs?password=s%20x&user=ann", "postgresql:///runs?password=***&user=ann"),
        ("sqlite:///var/runs.db", "sqlite:///var/runs.db"),
        ("runs.db", "runs.db"),
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    """An address without its password is what a report needs."""
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("demo.db", "sqlite:///demo.db"),
        ("/var/a b.db", "sqlite:////var/a b.db"),
        ("team@home.db", "sqlite:///team@home.db"),
        ("postgres", "sqlite:///postgres"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///demo.db", "sqlite:///demo.db"),
        ("postgres://u:p@h/d", "postgres://u:p@h/d"),
    ],
)
def test_plain_names_are_files(name: str, url: str) -> None:
    """A URL stays what it is."""
    assert checked_url(name) == url


@pytest.mark.parametrize("name", ["", " ", "sqlite://demo.db", "sqlite:demo.db", "mysql://x"])
def test_what_is_no_database_is_refused(name: str) -> None:
    """In particular what would be a database in memory, gone at the end."""
    with pytest.raises(SettingsError):
        checked_url(name)


def test_masked_characters_are_fine() -> None:
    """A password may have any of them."""
    found = address("postgresql://u:x%40y%2Fz@db:6000/runs")

    assert found.parts["password"] == "x@y/z"
    assert found.shown == "db:6000/runs"
    assert address("postgresql://u:p@a:1,b:2/d").parts["port"] == "1,2"
