"""The composition root: settings → store, codec, providers, client and worker."""

from __future__ import annotations

import asyncio
import logging
import random  # noqa: TID251 -- the root makes the streams that workflows are given
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agentflow.activities.llm_call import Models
from agentflow.client import Client, Run, Seams, Watch
from agentflow.client.operation import checked_key
from agentflow.clock import Clock, SharedClock, SystemClock
from agentflow.codec import Cipher, Codec
from agentflow.database_url import POSTGRES, checked_url
from agentflow.engine.definitions import REGISTRY, Registry, Workflow
from agentflow.errors import OwnedElsewhereError, UnknownModelError
from agentflow.ids import new_worker_id
from agentflow.llm.usage import Usage
from agentflow.loading import load
from agentflow.protocols import PriceBook, Provider, Store
from agentflow.settings import Settings, read_settings
from agentflow.stored import QueueLimit, RateLimit
from agentflow.worker.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from datetime import date

    from agentflow.ledger.prices import GenaiPriceBook  # loaded when something is priced
    from agentflow.ledger.statement import Vendor

R = TypeVar("R")
_LOG = logging.getLogger("agentflow")

# Adapters by the word before the colon, loaded when a model of theirs is first called: an SDK
# costs half a second and 30 MB that a run without it must not pay.
_PROVIDERS = {
    "openai": ("agentflow.providers.openai_responses", "OpenAIResponses"),
    "openai-chat": ("agentflow.providers.openai_chat", "OpenAIChat"),
    "anthropic": ("agentflow.providers.anthropic", "Anthropic"),
}


class Flow(Client):
    """A client with a worker in this process; see `agentflow.open`."""

    def __init__(self, seams: Seams, worker: Worker) -> None:
        super().__init__(seams)
        self._worker = worker

    @property
    def is_owner(self) -> bool:
        """Whether this process does the work; a stand-by waits until the owner ends."""
        return self._worker.is_owner

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight in this process's worker."""
        return self._worker.is_quiet

    @property
    def worker(self) -> Worker:
        """The worker in this process."""
        return self._worker

    async def wait_ended(self) -> None:
        """Wait until the worker stops by itself.

        Raises:
            BaseException: why it did.
        """
        await self._worker.ended.wait()
        if self._worker.error is not None:
            raise self._worker.error

    async def stop(self) -> None:
        """Stop the worker at the next safe point."""
        await self._worker.stop()

    async def abort(self) -> None:
        """Stop the worker now; attempts in flight will be in doubt."""
        await self._worker.abort()


@asynccontextmanager
async def open(  # noqa: PLR0913 -- the public keywords of the library's first call
    url: str | None = None,
    *,
    project: str | None = None,
    resources: Mapping[str, Any] | None = None,
    durability: str | None = None,
    providers: Sequence[Provider] = (),
    scripts: Mapping[str, Any] | None = None,
    prices: PriceBook | None = None,
    clock: Clock | None = None,
    registry: Registry = REGISTRY,
    worker: WorkerOptions | None = None,
    queues: Sequence[str] | None = None,
    actor: str | None = None,
    store: Store | None = None,
) -> AsyncIterator[Flow]:
    """Open a database with a worker in this process, and close both at the end of the block.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql://user@host/database``; the setting
            ``AGENTFLOW_DATABASE_URL`` by default.
        project: Scope of run ids; ``default`` by default.
        resources: What activities find in `ActivityContext.resources`, such as a pool.
        durability: ``full`` (default) survives a power cut, ``process`` the death of a process.
        providers: Adapters of one's own, by their names, before the built-in ones.
        scripts: Scripts of the ``scripted:NAME`` models, for tests and demos.
        prices: Price book of one's own.
        clock: Clock of one's own, for tests.
        registry: Workflows and activities; those of the process by default.
        worker: How the worker behaves.
        queues: Queues whose runs the worker takes; all by default.
        actor: Who is named in histories for what this client does.
        store: A store of one's own instead of the database of *url*; opened and closed here.

    Yields:
        The flow: start, get and steer runs.

    Raises:
        SettingsError: the URL or a setting has no meaning.
        SchemaVersionError: a newer agentflow has changed the database beyond this one.
    """
    settings = read_settings().with_flags(database_url=url, project=project, durability=durability)
    store = store or _store(settings, clock)
    clock = clock or SystemClock()
    watch = Watch()
    provider = _provider_loader(providers, scripts, background=settings.background)
    if prices is None and settings.prices:
        prices = price_book(settings)  # now: a mistake in the file should be seen at once
    models = Models(provider, lambda: prices or price_book(settings))
    options = worker or worker_options(settings)
    if queues is not None:
        options = replace(options, queues=tuple(queues))
    options = replace(
        options,
        limits=(*queue_limits(settings), *options.limits),
        rates=(*rate_limits(settings), *options.rates),
    )
    options = _with_resources(options, resources or {}, models)
    seams = _seams(settings, clock, watch, registry, actor, store)
    await store.open()
    try:
        made = Worker(
            store, codec=seams.codec, clock=clock, draws=random.SystemRandom(),
            random_of=_random_of, on_status=watch.on_status, on_item=watch.on_item,
            is_watched=watch.is_watched, registry=registry, options=options,
        )  # fmt: skip
        if store.is_shared:  # its clock is everybody's
            seams.clock = models.clock = made.membership
        watch.worker_error = lambda: made.error
        watch.is_alone = lambda: made.is_owner and not store.is_shared
        watch.has_run = made.has_run
        try:
            made.start()
            await made.ready()
            yield Flow(seams, made)
        except (asyncio.CancelledError, KeyboardInterrupt):
            await made.abort()
            raise
        else:
            await made.stop()
        finally:
            await made.abort()
            await models.close()
    finally:
        await store.close()


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    project: str | None = None,
    registry: Registry = REGISTRY,
    actor: str | None = None,
) -> AsyncIterator[Client]:
    """Open a database without a worker: start, find, watch and steer runs that others work on.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql://user@host/database``; the setting
            ``AGENTFLOW_DATABASE_URL`` by default.
        project: Scope of run ids; ``default`` by default.
        registry: Workflows and activities; those of the process by default.
        actor: Who is named in histories for what this client does.

    Yields:
        The client.

    Raises:
        SettingsError: the URL or a setting has no meaning.
    """
    settings = read_settings().with_flags(database_url=url, project=project)
    store = _store(settings, None)
    seams = _seams(settings, SystemClock(), Watch(), registry, actor, store)
    await seams.store.open()
    try:
        if store.is_shared:
            seams.clock = clock = SharedClock(seams.clock)
            asked_ms = clock.steady_ms()
            clock.learn(await store.now_ms(), asked_ms=asked_ms)
        yield Client(seams)
    finally:
        await seams.store.close()


def run_sync(
    workflow: Workflow[..., Awaitable[R]],
    *args: Any,
    id: str | None = None,
    url: str | None = None,
    resources: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> R:
    """Start (or resume) a run, wait for its result: the one synchronous door.

    Args:
        workflow: A function decorated with @workflow.
        *args: Its arguments.
        id: The run's id; the same id resumes.
        url: Database; the setting by default.
        resources: What activities find in `ActivityContext.resources`, such as a pool.
        **kwargs: The workflow's arguments by name.

    Returns:
        What the workflow returned.

    Raises:
        RunFailedError: the run failed. RunParkedError: it waits for a person.
    """

    async def main() -> R:
        async with open(url, resources=resources) as flow:
            run: Run[R] = await flow.start(workflow, *args, id=id, **kwargs)
            return await run.result()

    return asyncio.run(main())


async def copy_database(source: str, target: str) -> dict[str, int]:
    """Copy everything of one database into a new one: runs, histories, ledgers, budgets, schedules.

    Nobody may work on *source* meanwhile; it is not changed, and afterwards it is the old one.

    Args:
        source: URL or file of the database.
        target: URL of an empty one, made where it can be.

    Returns:
        The number of rows by table.

    Raises:
        OwnedElsewhereError: a worker is at work on *source*.
        UsageError: *target* is not empty.
    """
    settings = read_settings()
    old, new = (_store(replace(settings, database_url=url), None) for url in (source, target))
    await old.open()
    try:
        alone = await old.try_own(new_worker_id())
        if not alone or (old.is_shared and any(one.is_alive for one in await old.workers())):
            msg = "a worker is at work on the source"
            raise OwnedElsewhereError(msg, hint="Stop it: what it writes later is not copied.")
        await new.open()
        try:
            return await new.copy_from(old)
        finally:
            await new.close()
    finally:
        await old.close()


def _seams(
    settings: Settings,
    clock: Clock,
    watch: Watch,
    registry: Registry,
    actor: str | None,
    store: Store,
) -> Seams:
    codec = Codec(_cipher(settings), secrets=settings.secrets, max_bytes=settings.max_payload_bytes)
    return Seams(
        store=store, codec=codec, clock=clock, random_of=_random_of,
        watch=watch, registry=registry, project=settings.project, actor=actor,
        webhook_secret=settings.secrets.get("OPENAI_WEBHOOK_SECRET", ""),
    )  # fmt: skip


def _store(settings: Settings, clock: Clock | None) -> Store:
    url = checked_url(settings.database_url)
    made = load("agentflow.storage.store").SqlStore
    store: Store = (
        made.postgres(url, clock=clock)
        if url.startswith(POSTGRES)
        else made.sqlite(url, durability=settings.durability, clock=clock)
    )
    return store


def queue_limits(settings: Settings) -> list[QueueLimit]:
    """Return the limits of queues that *settings* name."""
    return [
        QueueLimit(scope="queue", name=name, source="settings", **limits)
        for name, limits in settings.queues.items()
    ]


def rate_limits(settings: Settings) -> list[RateLimit]:
    """Return the rates that *settings* name."""
    return [
        RateLimit(model=model, key=checked_key(key), source="settings", **limits)
        for (model, key), limits in settings.rates.items()
    ]


def _cipher(settings: Settings) -> Cipher | None:
    if not settings.encryption_key:
        return None
    module = load("agentflow.crypto")
    made: Cipher = module.AesGcmCipher.from_text(settings.encryption_key)
    return made


def price_book(settings: Settings) -> GenaiPriceBook:
    """Return the public prices under the negotiated ones that *settings* name.

    Raises:
        SettingsError: the file of negotiated prices cannot be read, or is wrong.
    """
    overlays = []
    if settings.prices:
        overlays.append(load("agentflow.ledger.overlay_file").read_overlay(Path(settings.prices)))
    book: GenaiPriceBook = load("agentflow.ledger.prices").GenaiPriceBook(overlays)
    return book


def read_usage(model: str, raw: Mapping[str, Any]) -> Usage | None:
    """Return usage as the adapter of a model's provider reads the vendor's own words.

    Args:
        model: ``provider:name``.
        raw: Usage as the ledger keeps it.

    Returns:
        The usage, or None where the words do not say what was used.

    Raises:
        LookupError: the provider is none of the box.
    """
    provider = model.partition(":")[0]
    path = (*_PROVIDERS.get(provider, ()), "")[0]
    if provider == "scripted":
        path = "agentflow.providers.scripted"
    if not path:
        msg = f"no adapter here reads the usage of {provider!r}"
        raise LookupError(msg)
    read: Callable[[dict[str, Any]], Usage | None] = load(path).read_usage
    return read({"usage": dict(raw), "tool_usage": raw.get("tool_usage")})


def _provider_loader(
    own: Sequence[Provider], scripts: Mapping[str, Any] | None, *, background: bool | None
) -> Callable[[str], Provider]:
    mine = {provider.name: provider for provider in own}

    def provider(name: str) -> Provider:
        if name in mine:
            return mine[name]
        if name == "scripted":
            module = load("agentflow.providers.scripted")
            scripted: Provider = module.Scripted(scripts=scripts or {})
            return scripted
        if name not in _PROVIDERS:
            known = ", ".join(sorted({*mine, *_PROVIDERS, "scripted"}))
            msg = f"there is no provider {name!r} (known: {known})"
            raise UnknownModelError(msg)
        path, class_name = _PROVIDERS[name]
        options = {"background": background} if name == "openai" else {}
        made: Provider = getattr(load(path), class_name)(**options)
        return made

    return provider


def _with_resources(
    options: WorkerOptions, resources: Mapping[str, Any], models: Models
) -> WorkerOptions:
    merged = {**options.resources, **resources, "agentflow.models": models}
    return replace(options, resources=merged)


def worker_options(settings: Settings, **more: Any) -> WorkerOptions:
    """Return how a worker behaves by *settings*, and by further options."""
    return WorkerOptions(
        quarantine_after=settings.quarantine_after,
        lease_seconds=settings.lease_seconds,
        beat_seconds=settings.beat_seconds,
        **more,
    )


def _random_of(seed: bytes) -> random.Random:
    return random.Random(seed)


def fetch_reports(
    vendor: Vendor, key: str, *, first: date, last: date, url: str = ""
) -> dict[str, str]:
    """Return a vendor's own usage and cost reports; see `agentflow.providers.admin_reports`."""
    reports = load("agentflow.providers.admin_reports")
    texts: dict[str, str] = reports.fetch_reports(vendor, key, first=first, last=last, url=url)
    return texts
