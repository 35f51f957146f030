"""What the lifespan hands to requests: the services, made once in `app`."""

from datetime import datetime
from typing import TypedDict

from msgspec import Struct

from cbemail.clock import Clock
from cbemail.hosts import MailHosts
from cbemail.imap.pool import ImapPool
from cbemail.mailbox.actions import MailboxActions
from cbemail.mailbox.folders import MailboxFolders
from cbemail.mailbox.view import MailboxView
from cbemail.outbox.outbox import Outbox
from cbemail.sessions.registry import Sessions
from cbemail.sessions.tokens import ApiKeys, Tokens
from cbemail.settings import Settings
from cbemail.smtp.pool import SmtpPool
from cbemail.store.database import Database


class Services(Struct, frozen=True):
    """Everything a handler may call. Handlers know these, and nothing of how they were put together."""

    settings: Settings
    clock: Clock
    started_at: datetime
    database: Database
    hosts: MailHosts
    sessions: Sessions
    tokens: Tokens
    api_keys: ApiKeys
    imap: ImapPool
    smtp: SmtpPool
    folders: MailboxFolders
    view: MailboxView
    actions: MailboxActions
    outbox: Outbox


class State(TypedDict):
    """The ASGI lifespan state."""

    services: Services
