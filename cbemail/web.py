"""The way out over HTTP: to token endpoints and autoconfiguration, at addresses judged like those of mail hosts.

A domain that a caller types decides where these requests go, so each hop, redirects included, is resolved and judged
by `MailHosts`, and connected to at the address that was judged.
"""

import asyncio
from collections.abc import Mapping

import httpx
from msgspec import Struct

from cbemail.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from cbemail.hosts import MailHosts

_REDIRECTS = 3
_CONNECT_SECONDS = 3.0  # for each address
_AGENT = "cbemail"


class WebAnswer(Struct, frozen=True):
    """A whole answer, whatever its status. The names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Web:
    """Requests over HTTPS, bounded in time and size. Plain HTTP is for hosts in ``ALLOW_MAIL_NETWORKS`` only.

    No connection is kept: two names may share an address, and a connection is proven for one name.
    """

    def __init__(self, hosts: MailHosts) -> None:
        self._client = httpx.AsyncClient(
            transport=_JudgedTransport(hosts),
            trust_env=False,  # a proxy would resolve the name once more, and not as we do
            max_redirects=_REDIRECTS,
            headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
            timeout=None,  # noqa: S113 - each request has one limit for the whole of it, below
        )

    async def get(self, url: str, *, seconds: float, limit: int) -> WebAnswer:
        """What stands at ``url``, up to three redirects further on; ``limit`` in octets.

        Raises:
            HostNotAllowed: a host on the way, its port or the lack of TLS is refused.
            UpstreamUnavailable, UpstreamTimeout: it cannot be reached, or the whole took longer than ``seconds``.
            UpstreamError: it is no HTTP server, its certificate is not good, or the answer is larger than ``limit``.
        """
        request = self._client.build_request("GET", url)
        return await self._send(request, seconds=seconds, limit=limit, follow=True)

    async def post(
        self, url: str, form: Mapping[str, str], *, seconds: float, limit: int
    ) -> WebAnswer:
        """Post a form, to this URL only: what it holds is for no other. Raises as `get` does."""
        headers = {"Accept": "application/json"}
        request = self._client.build_request("POST", url, data=dict(form), headers=headers)
        return await self._send(request, seconds=seconds, limit=limit, follow=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def _send(
        self, request: httpx.Request, *, seconds: float, limit: int, follow: bool
    ) -> WebAnswer:
        host = request.url.host
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.send(request, stream=True, follow_redirects=follow)
                try:
                    body = await _bounded(response, limit)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException) as exc:
            raise UpstreamTimeout(f"{host} did not answer over HTTP in time.") from exc
        except httpx.ConnectError as exc:
            raise UpstreamUnavailable(f"{host} cannot be reached over HTTP.") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise UpstreamError(f"{host} does not answer as an HTTP server should.") from exc
        return WebAnswer(response.status_code, dict(response.headers), body)


async def _bounded(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise UpstreamError(f"{response.url.host} answers with more than is read of it.")
    return bytes(body)


class _JudgedTransport(httpx.AsyncBaseTransport):
    """Sends each request to an address that was judged for it; the host's name stays in TLS and in ``Host``."""

    def __init__(self, hosts: MailHosts) -> None:
        self._hosts = hosts
        self._inner = httpx.AsyncHTTPTransport(
            verify=hosts.tls, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        secure = url.scheme == "https"
        name, addresses = await self._hosts.admit_web(
            url.host, url.port or (443 if secure else 80), secure=secure
        )
        extensions = {**request.extensions, "sni_hostname": name}
        extensions["timeout"] = {"connect": _CONNECT_SECONDS}
        failure: httpx.TransportError | None = None
        for address in addresses:
            there = httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,  # with the name in Host
                stream=request.stream,
                extensions=extensions,
            )
            try:
                return await self._inner.handle_async_request(there)
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:  # nothing was sent
                failure = exc
        raise failure or httpx.ConnectError("the name has no address")

    async def aclose(self) -> None:
        await self._inner.aclose()
