"""What the lifespan hands to requests: the services, made once in `app`."""

from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

from anyio import CapacityLimiter
from msgspec import Struct, field
from prometheus_client import CollectorRegistry

from cbemail.api.answers import Answers
from cbemail.api.bodies import Bodies
from cbemail.api.elements import Markup
from cbemail.api.gate import Gate
from cbemail.api.limits import Limits
from cbemail.clock import Clock
from cbemail.hosts import MailHosts
from cbemail.imap.pool import ImapPool
from cbemail.mailbox.mailbox import Mailbox
from cbemail.outbox.accept import Acceptance
from cbemail.outbox.batches import Batches
from cbemail.outbox.outbox import Outbox
from cbemail.outbox.steering import Steering
from cbemail.outbox.watching import Watching
from cbemail.sessions.discovery import Discovery
from cbemail.sessions.registry import Sessions
from cbemail.sessions.tokens import ApiKeys, Tokens
from cbemail.settings import Settings
from cbemail.smtp.pool import SmtpPool
from cbemail.store.database import Database


class Services(Struct, frozen=True):
    """Everything a handler may call. Handlers know these, and nothing of how they were put together.

    ``spool`` is a private folder for files that are on their way in or out; the start finds it empty. ``tables``
    bounds how many are written at once.
    """

    settings: Settings
    clock: Clock
    started_at: datetime
    database: Database
    hosts: MailHosts
    sessions: Sessions
    discovery: Discovery
    tokens: Tokens
    api_keys: ApiKeys
    gate: Gate
    limits: Limits
    imap: ImapPool
    smtp: SmtpPool
    mailbox: Mailbox
    answers: Answers
    outbox: Outbox
    batches: Batches
    watching: Watching
    steering: Steering
    acceptance: Acceptance
    metrics: CollectorRegistry
    spool: Path
    bodies: Bodies = field(default_factory=Bodies)
    tables: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))


class State(TypedDict):
    """The ASGI lifespan state: the services, and what is told of the API, which is made once."""

    services: Services
    openapi: dict[str, Any]
    docs: Markup
