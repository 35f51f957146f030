"""The composition root: the one module that knows every concrete class, and the order they are opened and closed in."""

import asyncio
import logging
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, ParamSpec

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from cbemail.api.answers import Answers
from cbemail.api.docs import render_docs
from cbemail.api.gate import Gate
from cbemail.api.limits import Limits
from cbemail.api.metrics import Sources, new_registry
from cbemail.api.middleware import Front
from cbemail.api.openapi import build_openapi
from cbemail.api.operation import Operation, request_id_of
from cbemail.api.problems import problem_response
from cbemail.api.routes import OPERATIONS
from cbemail.api.send import render
from cbemail.api.state import Services, State
from cbemail.clock import now
from cbemail.errors import CbemailError, MethodNotAllowed, RouteNotFound
from cbemail.hosts import MailHosts
from cbemail.ids import SessionId
from cbemail.imap.pool import ImapPool
from cbemail.mailbox.folder_state import STATES_KEPT, StateKeeper
from cbemail.mailbox.mailbox import Mailbox
from cbemail.mailbox.stored_cache import StoredCache
from cbemail.metrics import LAG_SECONDS, Distribution, RequestTally, watch_loop
from cbemail.outbox.accept import Acceptance
from cbemail.outbox.backlog import Backlog
from cbemail.outbox.batches import Batches
from cbemail.outbox.dispatch import Dispatch, Policy
from cbemail.outbox.limits import ProviderLimits, limits_of_session
from cbemail.outbox.outbox import Outbox
from cbemail.outbox.sent import SentFolder
from cbemail.outbox.steering import Steering
from cbemail.outbox.upstreams import Upstreams
from cbemail.outbox.watching import Watching
from cbemail.sessions.discovery import NAMES_AT_ONCE, Discovery
from cbemail.sessions.dns_records import DnsRecords, system_resolver
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.registry import Sessions
from cbemail.sessions.sources import ServerSources
from cbemail.sessions.tokens import ApiKeys, Tokens
from cbemail.sessions.vault import Vault
from cbemail.settings import Settings
from cbemail.smtp.pool import SmtpPool
from cbemail.store.batches import BatchRepository
from cbemail.store.cache_file import CacheFile
from cbemail.store.cache_keys import CacheKeys
from cbemail.store.database import Database, StoreUnusable
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.files import make_folder
from cbemail.store.folder_states import FolderStates
from cbemail.store.repository import Repository
from cbemail.store.staged_batches import StagedBatches
from cbemail.web import Web

log = logging.getLogger(__name__)

P = ParamSpec("P")

DRAIN_SECONDS = (
    6.0  # from the signal until what is under way is broken off; container engines kill after 10
)
ANSWER_SECONDS = 4  # of them, for requests that are under way
LAST_SECONDS = 1.0  # for sending in any case, had the requests taken longer
UPKEEP_SECONDS = 60.0  # between writes of when sessions were last used
KEYS_KEPT = timedelta(hours=24)  # idempotency keys, and the answers to them
SENDS_KEPT = timedelta(days=30)  # what became of messages and batches, after their end


class Service:
    """The service as an ASGI application. Nothing is opened before its lifespan starts."""

    def __init__(self, settings: Settings, policy: Policy) -> None:
        self._settings = settings
        self._policy = policy
        self._services: Services | None = None
        self._drain_ends: float | None = None
        # Starlette's router alone: what its application puts around it, operations and the front do.
        router = Router(
            _routes(), redirect_slashes=False, default=_no_route, lifespan=self._lifespan
        )
        self._openapi = build_openapi(OPERATIONS, version("cbemail"))
        self._docs = render_docs(self._openapi)
        self._tally = RequestTally()
        self._front = Front(router, self._tally)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._front(scope, receive, send)

    def begin_drain(self) -> None:
        """The process has been told to stop: no new message is begun, and held requests are let go. Told twice, it
        breaks off what is under way."""
        if self._services is None:
            return
        if self._drain_ends is None:
            self._drain_ends = monotonic() + DRAIN_SECONDS
            self._services.batches.begin_drain()
        else:
            self._services.batches.break_off()

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            self._services = services = await _open(
                self._settings, self._policy, self._tally, stack
            )
            stack.push_async_callback(self._drain, services)
            yield {"services": services, "openapi": self._openapi, "docs": self._docs}

    async def _drain(self, services: Services) -> None:
        if self._drain_ends is None:
            self.begin_drain()
        left = max((self._drain_ends or 0.0) - monotonic(), LAST_SECONDS)
        await asyncio.gather(
            services.outbox.drain(left),
            services.acceptance.drain(left),
            services.batches.drain(left),
        )


def create_app(settings: Settings, policy: Policy | None = None) -> Service:
    """The service, with its usual times, or with those of a test."""
    return Service(settings, policy or Policy())


async def _open(
    settings: Settings, policy: Policy, tally: RequestTally, stack: AsyncExitStack
) -> Services:
    """Open everything, in an order in which each part may rely on those before it; ``stack`` closes in reverse."""
    database = await DuckDbDatabase.open(settings.db_path)
    stack.callback(_tell_failure, database)  # after all is closed
    stack.push_async_callback(database.close)
    repository = Repository(database)
    spool = _empty_spool(settings.db_path)

    hosts = _mail_hosts(settings)
    web = Web(hosts)
    stack.push_async_callback(web.close)
    strangers = hosts.resolving(at_once=NAMES_AT_ONCE)
    strangers_web = Web(strangers)
    stack.push_async_callback(strangers_web.close)
    discovery = Discovery(_server_sources(settings, strangers, strangers_web))
    stack.push_async_callback(discovery.close)
    keyring = KeyRing(settings.secret_key)
    tokens = Tokens(
        keyring,
        expire_minutes=settings.access_token_expire_minutes,
        refresh_days=settings.session_ttl_days,
    )
    vault = Vault(keyring)
    sessions = Sessions(
        repository,
        vault,
        tokens,
        hosts,
        web,
        now,
        time_to_live=timedelta(days=settings.session_ttl_days),
    )
    await sessions.load()
    stack.push_async_callback(_tolerantly, sessions.save_use)
    stack.push_async_callback(sessions.credentials.renewals.close)

    imap = _imap_pool(settings, sessions)
    stack.callback(imap.close)
    stored_batches = BatchRepository(database)
    upstreams = Upstreams(sessions.require, limits_of_session, stored_batches, now)
    smtp = _smtp_pool(settings, policy, sessions, upstreams)
    stack.push_async_callback(smtp.aclose)

    folder_states = FolderStates(database)
    stored = await _stored_cache(settings, database, vault, stack)
    mailbox = Mailbox.over(imap, StateKeeper(vault, folder_states, now), now, stored)
    answers = Answers()
    imap.on_change.append(answers.forget)
    sent = SentFolder(imap, mailbox.directory)
    outbox = Outbox(repository, vault, smtp, upstreams, sent, now, render)
    dispatch = Dispatch(stored_batches, sessions, vault, smtp, upstreams, sent, now, policy)
    sessions.on_end += [
        imap.close_session,
        smtp.close_session,
        mailbox.forget,
        *([stored.forget] if stored is not None else []),
        answers.forget,
        dispatch.forget_session,
    ]
    sessions.on_renewal += [imap.close_session, smtp.close_session, dispatch.resume_session]
    uncertain = await repository.settle_interrupted_sends(now()) + await dispatch.start()
    if uncertain:
        log.warning("%d messages were interrupted, and are uncertain now", uncertain)
    batches = Batches(stored_batches, dispatch)
    backlog = Backlog(dispatch.lives)

    upkeep = asyncio.create_task(_keep_up(sessions, repository, stored_batches, folder_states))
    stack.push_async_callback(_stop, upkeep)
    lag = Distribution(LAG_SECONDS)
    stack.push_async_callback(_stop, asyncio.create_task(watch_loop(lag)))
    watch = asyncio.create_task(_exit_when_failed(database))
    stack.push_async_callback(_stop, watch)
    return Services(
        settings=settings,
        clock=now,
        started_at=now(),
        database=database,
        hosts=hosts,
        sessions=sessions,
        discovery=discovery,
        tokens=tokens,
        api_keys=ApiKeys(settings.api_keys),
        gate=Gate(settings.gate_pin, keyring, now),
        limits=Limits(logins=settings.session_rate_limit, requests=settings.request_rate_limit),
        imap=imap,
        smtp=smtp,
        mailbox=mailbox,
        answers=answers,
        outbox=outbox,
        batches=batches,
        watching=Watching(batches, dispatch),
        steering=Steering(stored_batches, dispatch, batches, backlog, now),
        acceptance=Acceptance(StagedBatches(database), repository, dispatch, backlog, vault, now),
        metrics=new_registry(
            Sources(
                requests=tally,
                lag=lag,
                sessions=sessions.count,
                renewals=sessions.credentials.renewals,
                imap=imap,
                smtp=smtp,
                cache=mailbox.cache,
                outbox=outbox,
                dispatch=dispatch,
                commits=database.statistics,
            )
        ),
        spool=spool,
    )


def _mail_hosts(settings: Settings) -> MailHosts:
    return MailHosts(
        allow_networks=settings.allow_mail_networks,
        allow_ports=settings.allow_mail_ports,
        allow_plaintext_login=settings.allow_plaintext_login,
        ca_file=settings.mail_ca_file,
    )


def _imap_pool(settings: Settings, sessions: Sessions) -> ImapPool:
    return ImapPool(
        sessions.credentials.connect_imap,
        per_session=settings.imap_connections_per_session,
        total=settings.imap_connections_total,
        idle_seconds=settings.imap_idle_seconds,
    )


def _smtp_pool(
    settings: Settings, policy: Policy, sessions: Sessions, upstreams: Upstreams
) -> SmtpPool:
    def host_of(session_id: SessionId) -> str:
        server = sessions.record(session_id).smtp
        return f"{server.host.lower()}:{server.port}"

    def account_of(session_id: SessionId) -> str:
        """The login at that host; of a session that has ended, itself."""
        if not sessions.exists(session_id):
            return session_id
        return sessions.record(session_id).smtp.username.lower()

    return SmtpPool(
        sessions.credentials.connect_smtp,
        host_of,
        account_of=account_of,
        limit_of=upstreams.connections,
        per_session=ProviderLimits().connections,
        per_host=settings.smtp_connections_per_host,
        messages_per_connection=settings.smtp_messages_per_connection,
        circuit=policy.circuit,
    )


def _server_sources(settings: Settings, hosts: MailHosts, web: Web) -> ServerSources | None:
    if not settings.discovery:
        return None
    return ServerSources(hosts, web, DnsRecords(system_resolver()), ispdb=settings.ispdb_url)


async def _stored_cache(
    settings: Settings, database: Database, vault: Vault, stack: AsyncExitStack
) -> StoredCache | None:
    """What is known of mail on disk, beside the store; None where nothing is to be there."""
    store = settings.db_path.resolve()
    path = store.with_name(store.name + ".cache")
    if settings.cache_max_mb == 0:
        CacheFile.remove(path)
        return None
    file = await CacheFile.open(path, settings.cache_max_mb * 1024 * 1024)
    stack.push_async_callback(file.close)
    unused = timedelta(hours=settings.cache_ttl_hours)
    stored = StoredCache(file, CacheKeys(database), vault, now, kept=unused)
    stack.push_async_callback(stored.flush)
    stack.push_async_callback(_stop, asyncio.create_task(stored.run()))
    return stored


async def _keep_up(
    sessions: Sessions,
    repository: Repository,
    batches: BatchRepository,
    folder_states: FolderStates,
) -> None:
    """What is written or cleared away now and then. A store that is full or failed for the moment ends nothing."""
    while True:
        await asyncio.sleep(UPKEEP_SECONDS)
        await _tolerantly(sessions.save_use)
        await _tolerantly(sessions.end_unused)
        await _tolerantly(repository.purge_expired, now(), keys=KEYS_KEPT, sends=SENDS_KEPT)
        await _tolerantly(batches.purge, now() - SENDS_KEPT)
        await _tolerantly(folder_states.purge, now() - STATES_KEPT)


async def _tolerantly(
    keep: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs
) -> None:
    try:
        await keep(*args, **kwargs)
    except CbemailError as error:
        log.warning("upkeep of the store failed: %s", error.code)


async def _exit_when_failed(database: Database) -> None:
    """A store that has failed for good cannot be trusted before it is opened anew: the process ends, to be restarted
    by whoever runs it. What was acknowledged is on disk."""
    await database.failed.wait()
    log.critical("the store failed: the service stops")
    signal.raise_signal(signal.SIGTERM)


def _tell_failure(database: Database) -> None:
    """End the lifespan with the failure, so that the process does not end as if all were well."""
    if database.failed.is_set():
        raise StoreUnusable(
            "The store failed while it was in use: look at the disk, and start again."
        )


def _empty_spool(db_path: Path) -> Path:
    """The folder for files on their way in and out, beside the store; what a process that died left there is gone."""
    spool = db_path.resolve().parent / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    make_folder(spool)
    return spool


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _routes() -> list[Route]:
    """One route a path, which knows all its methods: so a wrong one is told which there are. Starlette tries one after
    the other: the paths that are asked for most come first."""
    by_path: dict[str, dict[str, Operation[Any, Any]]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    paths = sorted(by_path, key=lambda path: not path.startswith("/api/mailbox/messages"))
    return [Route(path, _Methods(by_path[path])) for path in paths]


class _Methods:
    """The operations of one path."""

    def __init__(self, operations: dict[str, Operation[Any, Any]]) -> None:
        self._operations = operations
        if "GET" in operations:
            operations.setdefault("HEAD", operations["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations.get(scope["method"])
        if operation is not None:
            await operation(scope, receive, send)
            return
        allowed = ", ".join(sorted(self._operations))
        error = MethodNotAllowed(f"This path takes {allowed}.", allowed=allowed)
        await _refuse(error, scope, receive, send)


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    await _refuse(RouteNotFound("There is nothing at this path."), scope, receive, send)


async def _refuse(error: CbemailError, scope: Scope, receive: Receive, send: Send) -> None:
    scope["problem"] = error
    await problem_response(error, request_id_of(scope))(scope, receive, send)
