"""Who may know the mail servers of a domain: its MX record, Thunderbird's database, the domain itself, SRV, a guess.

A source answers with servers that may be contacted, or not at all: whatever goes wrong with one is no news to anybody.
"""

import asyncio
import re
from collections.abc import Sequence

from msgspec import structs

from cbemail.errors import CbemailError, HostNotAllowed
from cbemail.hosts import MailHosts, Security
from cbemail.sessions.autoconfig import LARGEST, read_autoconfig
from cbemail.sessions.dns_records import DnsRecords, Target
from cbemail.sessions.probe import Protocol, is_there
from cbemail.sessions.provider import Endpoint, Setup, Source
from cbemail.sessions.providers import find_provider_by_exchanger
from cbemail.web import Web, WebAnswer

_WEB_SECONDS = 5.0  # for those who set no deadline of their own
_GUESS_TTL = 3600  # seconds; nothing says how long a guess will do
_MAX_AGE = re.compile(r"\bmax-age=([0-9]{1,9})\b", re.ASCII)


class ServerSources:
    """Each method takes a domain, in A-labels. ``ispdb`` is the URL of the database, up to the domain."""

    def __init__(
        self, hosts: MailHosts, web: Web, records: DnsRecords, *, ispdb: str | None
    ) -> None:
        self._hosts = hosts
        self._web = web
        self._records = records
        self._ispdb = ispdb

    async def exchanger(self, domain: str) -> Setup | None:
        """A known provider, which the MX record says keeps the domain's mail.

        A forged record leads to the true servers of a provider we know, so it needs no proof.
        """
        exchanger = await self._records.exchanger(domain)
        provider = find_provider_by_exchanger(exchanger.host) if exchanger is not None else None
        if exchanger is None or provider is None:
            return None
        return Setup.of(provider, Source.MX, exchanger.ttl)

    async def database(self, domain: str) -> Setup | None:
        """Thunderbird's database of providers. It learns the domain."""
        return await self._document(f"{self._ispdb}{domain}", domain) if self._ispdb else None

    async def autoconfig_host(self, domain: str) -> Setup | None:
        """The domain's own document, where most keep it.

        Thunderbird adds the address to the URL. We do not: what we learn is kept for the whole domain, and so must not
        be about one address.
        """
        url = f"https://autoconfig.{domain}/mail/config-v1.1.xml"
        return await self._document(url, domain)

    async def well_known(self, domain: str) -> Setup | None:
        """The domain's own document, where its web site has it."""
        url = f"https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml"
        return await self._document(url, domain)

    async def services(self, domain: str) -> Setup | None:
        """The domain's SRV records: TLS from the first octet where it is offered (RFC 8314 section 5.1)."""
        imap, smtp = await asyncio.gather(
            self._service(Protocol.IMAP, domain, ("_imaps", "_imap")),
            self._service(Protocol.SMTP, domain, ("_submissions", "_submission")),
        )
        if imap is None or smtp is None:
            return None
        return Setup(imap[0], smtp[0], Source.SRV, ttl=min(imap[1], smtp[1]))

    async def guess(self, domain: str) -> Setup | None:
        """The names and ports that mail servers usually have, if servers are really there."""
        names = (f"imap.{domain}", f"smtp.{domain}", f"mail.{domain}", domain)
        imap_name, smtp_name, *others = names
        known = await asyncio.gather(*map(self._is_known, names))
        there = {name for name, is_known in zip(names, known, strict=True) if is_known}
        imap = [Endpoint(name, 993) for name in (imap_name, *others) if name in there]
        smtp = [
            Endpoint(name, port, security)
            for name in (smtp_name, *others)
            if name in there
            for port, security in ((465, Security.TLS), (587, Security.STARTTLS))
        ]
        found = await asyncio.gather(
            self._first_there(Protocol.IMAP, imap), self._first_there(Protocol.SMTP, smtp)
        )
        if found[0] is None or found[1] is None:
            return None
        return Setup(found[0], found[1], Source.GUESS, ttl=_GUESS_TTL)

    # ---- documents

    async def _document(self, url: str, domain: str) -> Setup | None:
        try:
            answer = await self._web.get(url, seconds=_WEB_SECONDS, limit=LARGEST)
        except CbemailError:
            return None
        setup = read_autoconfig(answer.body, domain) if answer.status == 200 else None
        if setup is None:
            return None
        imap, smtp = await asyncio.gather(self._vetted(setup.imap), self._vetted(setup.smtp))
        if imap is None or smtp is None:
            return None
        return structs.replace(setup, imap=imap, smtp=smtp, ttl=_time_to_live(answer, setup.ttl))

    # ---- records

    async def _service(
        self, protocol: Protocol, domain: str, names: tuple[str, str]
    ) -> tuple[Endpoint, int] | None:
        """Where the service is, and for how long that holds."""
        targets = await asyncio.gather(*(self._records.service(name, domain) for name in names))
        for target, security in zip(targets, (Security.TLS, Security.STARTTLS), strict=True):
            endpoint = await self._target(protocol, domain, target, security)
            if target is not None and endpoint is not None:
                return endpoint, target.ttl
        return None

    async def _target(
        self, protocol: Protocol, domain: str, target: Target | None, security: Security
    ) -> Endpoint | None:
        """Anybody on the way may forge a record. Within the domain the certificate tells at every login (RFC 6186
        section 6); outside of it, only a server that proves the name it is said to have is believed to be one."""
        if target is None:
            return None
        endpoint = await self._vetted(Endpoint(target.host, target.port, security))
        if endpoint is None or f".{endpoint.host}".endswith(f".{domain}"):
            return endpoint
        return endpoint if await is_there(protocol, endpoint, self._hosts) else None

    # ---- hosts

    async def _vetted(self, endpoint: Endpoint) -> Endpoint | None:
        """The endpoint, if it may be contacted, in the one spelling of its host."""
        try:
            host = await self._hosts.vet(endpoint.host, endpoint.port, endpoint.security)
        except CbemailError:
            return None
        return structs.replace(endpoint, host=host)

    async def _is_known(self, name: str) -> bool:
        """Whether DNS knows the name: one question for all its ports. What may be contacted is judged port by port."""
        try:
            await self._hosts.vet(name, 993, Security.TLS)
        except HostNotAllowed:
            return True
        except CbemailError:
            return False
        return True

    async def _first_there(
        self, protocol: Protocol, endpoints: Sequence[Endpoint]
    ) -> Endpoint | None:
        there = await asyncio.gather(
            *(is_there(protocol, endpoint, self._hosts) for endpoint in endpoints)
        )
        return next((e for e, answers in zip(endpoints, there, strict=True) if answers), None)


def _time_to_live(answer: WebAnswer, otherwise: int) -> int:
    """As Cache-Control says (RFC 9111 section 5.2.2)."""
    said = _MAX_AGE.search(answer.headers.get("cache-control", ""))
    return int(said[1]) if said is not None else otherwise
