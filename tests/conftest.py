"""No test reaches a paid service: no key, no address, and the network ends at this machine."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from agentflow.engine.definitions import REGISTRY
from agentflow.errors import StoreError
from agentflow.storage import SqlStore
from tests.simulation.seeds import SEEDS

if TYPE_CHECKING:
    from agentflow.testing.postgres import PostgresServer

SERVICE_SETTINGS = ("OPENAI_", "ANTHROPIC_", "AGENTFLOW_")
TEST_SETTINGS = "AGENTFLOW_TEST_"  # where a test finds a server of its own, say PostgreSQL


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--live``."""
    parser.addoption(
        "--live", action="store_true", help="run only the tests that call paid APIs, and let them"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Close the network and forget the settings of services, for doctests and fixtures too."""
    if config.getoption("--live"):
        return
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in list(os.environ):
        if name.startswith(SERVICE_SETTINGS) and not name.startswith(TEST_SETTINGS):
            patch.delenv(name)
    for method in ("connect", "connect_ex"):
        patch.setattr(socket.socket, method, only_loopback(getattr(socket.socket, method)))
    patch.setattr(socket, "getaddrinfo", only_loopback_names(socket.getaddrinfo))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--live`` keep only the live tests, without it only the others."""
    live = bool(config.getoption("--live"))
    dropped = [i for i in items if bool(i.get_closest_marker("live")) is not live]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [i for i in items if i not in dropped]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the seeds of the simulation run beside everything that comes before their test."""
    wanted = any(item.name == "test_thousands_of_seeds_find_nothing" for item in session.items)
    if wanted and not session.config.option.collectonly:
        SEEDS.start()


def pytest_sessionfinish() -> None:
    """Leave no process behind."""
    SEEDS.stop()


def only_loopback(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Return *connect*, refusing every address but this machine's."""

    def guarded(sock: socket.socket, address: Any) -> Any:
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            refuse_unless_loopback(address[0])
        return connect(sock, address)

    return guarded


def only_loopback_names(getaddrinfo: Callable[..., Any]) -> Callable[..., Any]:
    """Return *getaddrinfo*, refusing all names but this machine's, even when offline."""

    def guarded(host: bytes | str | None, *args: Any, **kwargs: Any) -> Any:
        refuse_unless_loopback(host.decode() if isinstance(host, bytes) else host)
        return getaddrinfo(host, *args, **kwargs)

    return guarded


def refuse_unless_loopback(host: str | None) -> None:
    """Fail the test, past every ``except Exception``, if *host* is another machine."""
    if host in {None, "", "localhost", "0.0.0.0", "::", socket.gethostname()}:  # noqa: S104
        return
    try:
        if ipaddress.ip_address(str(host).partition("%")[0]).is_loopback:
            return
    except ValueError:
        pass
    pytest.fail(f"a test reached for {host}; mark it `live` if it must", pytrace=True)


@pytest.fixture(autouse=True)
def _own_workflows() -> Iterator[None]:
    """Forget the workflows that a test registers: another may use the same names."""
    before = dict(REGISTRY.workflows)
    yield
    REGISTRY.workflows = before
    REGISTRY.changes += 1


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test on an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of ``AGENTFLOW_TEST_POSTGRES_URL``, or a private one."""
    postgres = pytest.importorskip("agentflow.testing.postgres", exc_type=ImportError)
    url = os.environ.get("AGENTFLOW_TEST_POSTGRES_URL")
    if url:
        yield postgres.PostgresServer(url)
        return
    with ExitStack() as stack:
        try:
            server = stack.enter_context(postgres.private_server())
        except StoreError as e:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no PostgreSQL for tests: {e.message}")
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the schema, to copy from."""
    url = postgres_server.new_database()

    async def make() -> None:
        store = SqlStore.postgres(url)
        await store.open()
        await store.close()

    asyncio.run(make())
    yield url.rsplit("/", 1)[1]
    postgres_server.drop(url)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """A database of the test's own, with the schema."""
    url = postgres_server.new_database(postgres_template)
    yield url
    postgres_server.drop(url)
