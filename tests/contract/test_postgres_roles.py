"""The roles of docs/deploy.md can do what they are for, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import agentflow
from agentflow import activity, approve, workflow
from agentflow.errors import DatabaseRightsError
from agentflow.testing.postgres import PostgresServer
from tests.contract.test_runs import until_status

pytestmark = pytest.mark.postgres

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
ROLES = ("agentflow_worker", "agentflow_dashboard", "agentflow_viewer")


@pytest.fixture
def database(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """A database with the roles of the page."""
    name = postgres_url.rsplit("/", 1)[1]
    page = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"```pgsql\n(.*?)```", page, flags=re.DOTALL):
        postgres_server.run(block, name)
    yield name
    for role in ROLES:
        postgres_server.run(f"DROP OWNED BY {role}", name)
        postgres_server.run(f"DROP ROLE {role}", name)


@activity
async def count(n: int) -> int:
    """Add one."""
    return n + 1


@workflow
async def asks_first(n: int) -> int:
    """Ask a person, then count."""
    return await count(n) if await approve("May I?") else 0


async def test_each_role_does_its_part_of_a_run(
    postgres_server: PostgresServer, database: str
) -> None:
    """A worker works, a dashboard approves, a viewer looks."""
    worker, dashboard, viewer = (postgres_server.of(database, role) for role in ROLES)
    async with agentflow.open(worker) as flow:
        run = await flow.start(asks_first, 1, id="r", budget_usd="1.00", tags=["t"])
        await until_status(run, "waiting")
        async with agentflow.connect(dashboard) as person:
            (asked,) = await person.approvals()
            await person.decide(asked.id, approved=True)
        assert await run.result() == 2
    async with agentflow.connect(viewer) as reader:
        assert (await (await reader.get("r")).status()) == "completed"
        with pytest.raises(DatabaseRightsError, match="permission denied"):
            await reader.start(asks_first, 2)


@pytest.mark.parametrize(
    ("role", "sql"),
    [
        ("agentflow_worker", "UPDATE events SET data = '{}'"),
        ("agentflow_worker", "DELETE FROM cost_lines"),
        ("agentflow_worker", "DROP TABLE runs"),
        ("agentflow_dashboard", "UPDATE runs SET epoch = 9"),
        ("agentflow_dashboard", "INSERT INTO events SELECT * FROM events"),
        ("agentflow_dashboard", "UPDATE budgets SET spent_pico_usd = 0"),
        ("agentflow_viewer", "DELETE FROM inbox"),
    ],
)
def test_no_role_does_more(
    postgres_server: PostgresServer, database: str, role: str, sql: str
) -> None:
    """Histories and amounts are nobody's to change."""
    refused = pytest.raises(psycopg.errors.InsufficientPrivilege)
    with psycopg.connect(postgres_server.of(database, role)) as conn, refused:
        conn.execute(sql.encode())
