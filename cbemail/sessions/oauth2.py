"""OAuth2 for mailboxes: which token endpoint a provider has, and what it gives for a refresh token.

RFC 6749 section 6, with the client's secret in the form (section 2.3.1), as Google, Microsoft, Yahoo and Zoho document it.
"""

import re
from datetime import datetime, timedelta
from typing import NoReturn

import msgspec
from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import (
    CredentialsRejected,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import AccessToken
from cbemail.sessions.providers import find_provider_by_host
from cbemail.web import Web, WebAnswer

PROTOCOL = "oauth2"  # of the errors that come from an endpoint, as against those of mail servers
ANSWER_SECONDS = 10.0  # for the whole exchange
ANSWER_OCTETS = 65_536  # an answer has two tokens, of a few thousand octets each
RETRY_SECONDS = 10  # after a failure that names no time of its own
LONGEST_RETRY = 3600
LONGEST_LIFE = 400 * 86_400  # seconds; whatever claims to live longer is not believed


class Grant(Struct, frozen=True, array_like=True):
    """What new access tokens are had with, and the age of the present one. Its repr shows nothing of it.

    It is sealed as it is, by position: a new field goes to the end, with a default.
    """

    token_url: str
    client_id: str
    refresh_token: str
    client_secret: str | None = None
    scope: str | None = None
    renewed_at: datetime | None = None  # None: the present access token came from the caller
    expires_at: datetime | None = None  # None: nobody has said

    def __repr__(self) -> str:
        return "Grant(…)"


# ---- whose endpoint is where


class TokenEndpoint(Struct, frozen=True):
    """Where a provider gives access tokens, and the scope to ask it for, where it wants one named."""

    url: str
    scope: str | None = None


_GOOGLE = TokenEndpoint("https://oauth2.googleapis.com/token")
_YAHOO = TokenEndpoint("https://api.login.yahoo.com/oauth2/get_token")
_MICROSOFT_SCOPE = (
    "https://outlook.office.com/IMAP.AccessAsUser.All https://outlook.office.com/SMTP.Send "
    "offline_access"
)
_ZOHO_HOSTS = {  # by data centre; a refresh token is good at its own only
    "com": "accounts.zoho.com",
    "eu": "accounts.zoho.eu",
    "in": "accounts.zoho.in",
    "com.au": "accounts.zoho.com.au",
    "jp": "accounts.zoho.jp",
    "ca": "accounts.zohocloud.ca",
    "sa": "accounts.zoho.sa",
}
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")  # an id, a domain, or "common"
_OF_SERVERS = {  # those of `providers` that have one
    "Gmail": "google",
    "Microsoft 365": "microsoft",
    "Outlook.com": "microsoft",
    "Yahoo": "yahoo",
    "Zoho Mail": "zoho",
    "Zoho Mail (EU)": "zoho:eu",
    "Zoho Mail (India)": "zoho:in",
}


def find_token_endpoint(provider: str) -> TokenEndpoint | None:
    """The endpoint of ``google``, ``microsoft``, ``yahoo`` or ``zoho``. Behind a colon a tenant of Microsoft can be
    named (else ``common``), or a data centre of Zoho (else ``com``).

    >>> find_token_endpoint("microsoft:contoso.com").url
    'https://login.microsoftonline.com/contoso.com/oauth2/v2.0/token'
    >>> find_token_endpoint("zoho:eu").url
    'https://accounts.zoho.eu/oauth/v2/token'
    """
    name, _, realm = provider.partition(":")
    match name:
        case "google" if not realm:
            return _GOOGLE
        case "yahoo" if not realm:
            return _YAHOO
        case "microsoft" if _TENANT.fullmatch(realm or "common"):
            url = f"https://login.microsoftonline.com/{realm or 'common'}/oauth2/v2.0/token"
            return TokenEndpoint(url, _MICROSOFT_SCOPE)
        case "zoho" if (realm or "com") in _ZOHO_HOSTS:
            return TokenEndpoint(f"https://{_ZOHO_HOSTS[realm or 'com']}/oauth/v2/token")
        case _:
            return None


def find_token_endpoint_by_host(host: str) -> TokenEndpoint | None:
    """The endpoint of the provider that runs this mail server.

    >>> find_token_endpoint_by_host("imap.gmail.com").url
    'https://oauth2.googleapis.com/token'
    """
    provider = find_provider_by_host(host)
    if provider is None or provider.name not in _OF_SERVERS:
        return None
    return find_token_endpoint(_OF_SERVERS[provider.name])


# ---- the exchange


async def exchange(web: Web, grant: Grant, clock: Clock) -> tuple[AccessToken, Grant]:
    """A new access token, and the grant as it is from now on: an endpoint may have put another refresh token into it,
    and then the old one is used up. What is lost of this answer cannot be asked for again.

    Raises:
        CredentialsRejected: the endpoint refuses the refresh token, the client or the request, for good.
        UpstreamUnavailable, UpstreamTimeout: it gives no answer, or none that says so; later it may.
        HostNotAllowed: its host may not be contacted (any more).
    """
    answer = await _post(web, grant)
    said = _understood(answer)
    if not said.access_token or said.error is not None:
        _refuse(answer, said)
    now = clock()
    renewed = structs.replace(
        grant,
        refresh_token=said.refresh_token or grant.refresh_token,
        renewed_at=now,
        expires_at=_expiry(said, now),
    )
    return AccessToken(said.access_token), renewed


async def _post(web: Web, grant: Grant) -> WebAnswer:
    form = {
        "grant_type": "refresh_token",
        "refresh_token": grant.refresh_token,
        "client_id": grant.client_id,
    }
    if grant.client_secret is not None:
        form["client_secret"] = grant.client_secret
    if grant.scope is not None:
        form["scope"] = grant.scope
    try:
        return await web.post(grant.token_url, form, seconds=ANSWER_SECONDS, limit=ANSWER_OCTETS)
    except UpstreamTimeout as exc:
        raise UpstreamTimeout(exc.detail, protocol=PROTOCOL, retry_after=RETRY_SECONDS) from exc
    except UpstreamError as exc:
        raise UpstreamUnavailable(exc.detail, protocol=PROTOCOL, retry_after=RETRY_SECONDS) from exc


class _Answer(Struct, frozen=True):
    """RFC 6749 sections 5.1 and 5.2. Zoho's older data centres tell ``expires_in`` in milliseconds, and in seconds
    apart from it; Yahoo's ``error`` may be an object."""

    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: object = (
        None  # of whatever type: an answer holds a refresh token that is given once
    )
    expires_in_sec: object = None
    error: str | dict[str, object] | None = None

    def __repr__(self) -> str:
        return "_Answer(…)"


_answer = msgspec.json.Decoder(_Answer)
_TOKEN = re.compile(
    r"[\x20-\x7e]*"
)  # RFC 6749 appendix A.12; a control character would end a SASL field


def _understood(answer: WebAnswer) -> _Answer:
    """The answer, or an empty one where it is not JSON, or not of this kind: a proxy's page, say."""
    try:
        said = _answer.decode(answer.body)
    except msgspec.DecodeError:
        return _Answer()
    return said if _TOKEN.fullmatch(said.access_token or "") else _Answer()


def _seconds(value: object) -> float:
    """A number, which some endpoints quote; 0 where it is none."""
    try:
        return msgspec.convert(value, float, strict=False)
    except msgspec.ValidationError:
        return 0.0


def _expiry(said: _Answer, now: datetime) -> datetime | None:
    seconds = _seconds(said.expires_in_sec) or _seconds(said.expires_in)
    return now + timedelta(seconds=seconds) if 0 < seconds < LONGEST_LIFE else None


_GRANT_REFUSED = "The provider no longer accepts the refresh token: let the mailbox's owner authorise access anew."
_CLIENT_REFUSED = "The provider does not accept the OAuth2 client: look at client_id, client_secret and when that expires."
_REQUEST_REFUSED = "The token endpoint does not take the request: look at provider or token_url, and at what the client may do."
_REFUSALS = {  # RFC 6749 section 5.2, and what providers say in place of it
    "invalid_grant": _GRANT_REFUSED,
    "invalid_code": _GRANT_REFUSED,  # Zoho
    "interaction_required": _GRANT_REFUSED,  # Microsoft, these three
    "consent_required": _GRANT_REFUSED,
    "login_required": _GRANT_REFUSED,
    "invalid_client": _CLIENT_REFUSED,
    "unauthorized_client": _CLIENT_REFUSED,
    "deleted_client": _CLIENT_REFUSED,  # Google
    "invalid_client_secret": _CLIENT_REFUSED,  # Zoho
    "invalid_request": _REQUEST_REFUSED,
    "invalid_scope": _REQUEST_REFUSED,
    "unsupported_grant_type": _REQUEST_REFUSED,
}


def _refuse(answer: WebAnswer, said: _Answer) -> NoReturn:
    """Only what is known to be for good is so, and no server in trouble is believed: who is called stale has to
    authorise anew. Zoho refuses with status 200."""
    in_trouble = answer.status == 429 or answer.status >= 500
    sentence = _REFUSALS.get(said.error) if isinstance(said.error, str) else None
    if sentence is not None and not in_trouble:
        raise CredentialsRejected(sentence)
    raise UpstreamUnavailable(
        "The token endpoint gives no access token just now.",
        protocol=PROTOCOL,
        command="refresh",
        response_code=str(answer.status),
        retry_after=_retry_after(answer),
    )


def _retry_after(answer: WebAnswer) -> int:
    """In seconds (RFC 9110 section 10.2.3); a date is not worth the trouble here."""
    told = answer.headers.get("retry-after", "")
    if not (told.isascii() and told.isdecimal() and len(told) < 10):
        return RETRY_SECONDS
    return min(max(int(told), 1), LONGEST_RETRY)
