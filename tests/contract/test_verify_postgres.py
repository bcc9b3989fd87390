"""`verify` reads a PostgreSQL database as it reads a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agentflow.app import copy_database
from agentflow.engine.definitions import Registry, Workflow
from agentflow.engine.functions import wait_signal
from agentflow.storage import SqlStore
from agentflow.testing.facts import read_file, read_postgres
from agentflow.testing.invariants import problems
from agentflow.testing.postgres import PostgresServer
from agentflow.testing.stage import Stage

pytestmark = pytest.mark.postgres
REGISTRY = Registry()


async def _tale(words: list[str]) -> int:
    more: str = await wait_signal("more", str)
    return len("".join([*words, more]))


REGISTRY.add(Workflow(_tale, name="tale"))


@pytest.fixture
def both(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The same run in a file and in a database, with a body that lies outside of its events."""
    stage = Stage(path=tmp_path / "tale.db", registry=REGISTRY)

    async def say(flow: object, run: object) -> None:
        await run.signal("more", "x" * 500)  # type: ignore[attr-defined]

    tale = REGISTRY.workflows["tale"]
    assert stage.run(tale, ["y" * 500], id="tale", operate=say) == 1000
    url = postgres_server.new_database()
    yield stage.path, url
    postgres_server.drop(url)


async def test_a_database_is_read_as_a_file_is(both: tuple[Path, str]) -> None:
    """Every fact is the same, and all is well."""
    path, url = both
    await copy_database(f"sqlite:///{path}", url)
    file, database = read_file(path), read_postgres(url)

    assert database.runs == file.runs
    assert problems(url, registry=REGISTRY) == []


async def test_what_is_wrong_in_a_database_is_found(both: tuple[Path, str]) -> None:
    """A missing event, seen through the option schema."""
    path, url = both
    await copy_database(f"sqlite:///{path}", f"{url}?schema=ours")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("DELETE FROM ours.events WHERE seq = 1")

    (first, *_) = problems(f"{url}?schema=ours", registry=REGISTRY)
    assert first.startswith("run tale: ")


async def test_a_database_in_use_is_read_at_one_moment(both: tuple[Path, str]) -> None:
    """Without tables there is an error of the database, not an empty list."""
    _, url = both
    store = SqlStore.postgres(url)
    with pytest.raises(psycopg.errors.UndefinedTable):
        problems(url)
    await store.open()
    await store.close()

    assert problems(url) == []
