"""The way out over HTTP: to token endpoints and autoconfiguration, at addresses judged like those of mail hosts.

A domain that a caller types decides where these requests go, so each hop, redirects included, is resolved and judged
by `MailHosts`, and connected to at the address that was judged.
"""

import asyncio
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
from idna import IDNAError
from msgspec import Struct

from cbemail.errors import HostNotAllowed, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from cbemail.hosts import MailHosts

_REDIRECTS = 3
_CONNECT_SECONDS = 3.0  # for each address
_AGENT = "cbemail"
_NO_URL = (httpx.InvalidURL, IDNAError)  # the library's host decodes A-labels, of IDNA 2008 only
_NOT_A_URL = "The URL is not one of a web server, as https://auth.example.org/token is."


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
        self._hosts = hosts
        self._client = httpx.AsyncClient(  # nosec B113 - see timeout
            transport=_JudgedTransport(hosts),
            trust_env=False,  # a proxy would resolve the name once more, and not as we do
            # None is kept: a client of all mailboxes would tell one of them by another's, and remember for ever.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
            timeout=None,  # noqa: S113 - each request has one limit for the whole of it, below
        )

    async def vet(self, url: str) -> None:
        """Judge a URL before it is stored.

        Raises:
            HostNotAllowed: it is no URL of a web server, or its host, port or lack of TLS is refused.
            UpstreamUnavailable, UpstreamTimeout: its host has no address, or could not be resolved in time.
        """
        try:
            parsed = httpx.URL(url)
            host = parsed.host
        except _NO_URL as exc:
            raise HostNotAllowed(_NOT_A_URL) from exc
        if parsed.scheme not in {"https", "http"} or not host or parsed.userinfo:
            raise HostNotAllowed(_NOT_A_URL)
        await _admitted(self._hosts, parsed)

    async def get(self, url: str, *, seconds: float, limit: int) -> WebAnswer:
        """What stands at ``url``, up to three redirects further on; ``limit`` in octets.

        Raises:
            HostNotAllowed: a host on the way, its port or the lack of TLS is refused.
            UpstreamUnavailable, UpstreamTimeout: it cannot be reached, or the whole took longer than ``seconds``.
            UpstreamError: it is no HTTP server, its certificate is not good, or the answer is larger than ``limit``.
        """
        request = self._request("GET", url)
        return await self._send(request, seconds=seconds, limit=limit, redirects=_REDIRECTS)

    async def post(
        self, url: str, form: Mapping[str, str], *, seconds: float, limit: int
    ) -> WebAnswer:
        """Post a form, to this URL only: what it holds is for no other. Raises as `get` does."""
        headers = {"Accept": "application/json"}
        request = self._request("POST", url, form=dict(form), headers=headers)
        return await self._send(request, seconds=seconds, limit=limit, redirects=0)

    async def close(self) -> None:
        await self._client.aclose()

    def _request(
        self,
        method: str,
        url: str,
        *,
        form: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Request:
        try:
            return self._client.build_request(method, url, data=form, headers=headers)
        except _NO_URL as exc:
            raise HostNotAllowed(_NOT_A_URL) from exc

    async def _send(
        self, request: httpx.Request, *, seconds: float, limit: int, redirects: int
    ) -> WebAnswer:
        host = request.url.host
        try:
            async with asyncio.timeout(seconds):
                return await self._follow(request, limit=limit, redirects=redirects)
        except (TimeoutError, httpx.TimeoutException) as exc:
            raise UpstreamTimeout(f"{host} did not answer over HTTP in time.") from exc
        except httpx.ConnectError as exc:
            raise UpstreamUnavailable(f"{host} cannot be reached over HTTP.") from exc
        except (httpx.HTTPError, *_NO_URL) as exc:
            raise UpstreamError(f"{host} does not answer as an HTTP server should.") from exc

    async def _follow(self, request: httpx.Request, *, limit: int, redirects: int) -> WebAnswer:
        """What a redirect has beside its head is not read. The library would, all of it, and unpack it first."""
        while True:
            response = await self._client.send(request, stream=True)
            try:
                if response.next_request is None or not redirects:
                    body = await _bounded(response, limit)
                    return WebAnswer(response.status_code, dict(response.headers), body)
            finally:
                await response.aclose()
            request, redirects = response.next_request, redirects - 1


async def _bounded(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise UpstreamError(f"{response.url.host} answers with more than is read of it.")
    return bytes(body)


async def _admitted(hosts: MailHosts, url: httpx.URL) -> tuple[str, list[str]]:
    """The name of the URL's host, and the addresses at which it may be asked."""
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    return await hosts.admit_web(url.host, port, secure=secure)


class _JudgedTransport(httpx.AsyncBaseTransport):
    """Sends each request to an address that was judged for it; the host's name stays in TLS and in ``Host``."""

    def __init__(self, hosts: MailHosts) -> None:
        self._hosts = hosts
        self._inner = httpx.AsyncHTTPTransport(
            verify=hosts.tls, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        name, addresses = await _admitted(self._hosts, url)
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
