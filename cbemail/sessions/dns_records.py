"""What DNS says of a domain's mail servers: MX (RFC 5321 section 5.1) and SRV records (RFC 6186, RFC 8314)."""

from typing import Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
from dns.asyncresolver import Resolver
from msgspec import Struct


class Target(Struct, frozen=True):
    """Where a record leads; ``ttl`` in seconds, of the whole chain of aliases that led there."""

    host: str
    port: int
    ttl: int


class DnsRecords:
    """Questions to DNS. No answer, a refusal, and an answer that there is nothing are all None."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def exchanger(self, domain: str) -> Target | None:
        """The host that takes the domain's mail in, the first of those there are."""
        return await self._first(domain, "MX")

    async def service(self, name: str, domain: str) -> Target | None:
        """Where the service ``name`` of the domain is, such as `_imaps`. None where it says "not offered", too."""
        return await self._first(f"{name}._tcp.{domain}", "SRV")

    async def _first(self, name: str, kind: str) -> Target | None:
        try:
            answer = await self._resolver.resolve(dns.name.from_text(name), kind)
        except dns.exception.DNSException:
            return None
        record: Any = answer.rrset.processing_order()[0]  # type: ignore[union-attr]  # there is one, or it raises
        host = record.target if kind == "SRV" else record.exchange
        if host == dns.name.root:  # RFC 2782, RFC 7505: decidedly none
            return None
        port = record.port if kind == "SRV" else 25
        ttl = answer.chaining_result.minimum_ttl
        return Target(host.to_text(omit_final_dot=True).lower(), port, ttl)


def system_resolver() -> Resolver:
    """The resolver that the machine is configured with. Where there is none, every question goes unanswered."""
    try:
        return dns.asyncresolver.get_default_resolver()
    except dns.resolver.NoResolverConfiguration:
        return Resolver(configure=False)
