"""What a caller proves a mailbox with: a password, or OAuth2 in its place."""

import re
from typing import Annotated

from msgspec import Meta, Struct

from cbemail.errors import InvalidRequest
from cbemail.hosts import AccessToken, Password, Secret
from cbemail.sessions.oauth2 import (
    Grant,
    TokenEndpoint,
    find_token_endpoint,
    find_token_endpoint_by_host,
)

Token = Annotated[str, Meta(min_length=1, max_length=16_384)]  # four times the largest in use
ClientText = Annotated[str, Meta(min_length=1, max_length=1024)]


class OAuth2Input(Struct, frozen=True, forbid_unknown_fields=True):
    """OAuth2 in place of a password. An ``access_token`` alone is used until the mail server refuses it.

    With a ``refresh_token`` and the ``client_id`` it was given to, access tokens are renewed before they expire, at the
    token endpoint of the ``provider`` (``google``, ``microsoft``, ``microsoft:<tenant>``, ``yahoo``, ``zoho`` or
    ``zoho:<data centre>``) or at ``token_url``. Neither is needed where the mailbox's IMAP server is one of theirs.
    """

    access_token: Token | None = None
    refresh_token: Token | None = None
    client_id: ClientText | None = None
    client_secret: ClientText | None = None
    provider: ClientText | None = None
    token_url: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def printable(value: str, pointer: str) -> str:
    """A control character in a credential has no use but to end a command early."""
    if not value or _CONTROL.search(value):
        raise InvalidRequest.at(pointer, "This must not be empty, nor hold control characters.")
    return value


def secret_of(password: str | None, oauth2: OAuth2Input | None) -> Secret:
    """What to log in with. An empty access token: the grant is to give the first one."""
    if (password is None) == (oauth2 is None):
        raise InvalidRequest.at("#/password", "Give a password, or oauth2 in its place.")
    if oauth2 is None:
        return Password(printable(password or "", "#/password"))
    if oauth2.access_token is not None:
        return AccessToken(printable(oauth2.access_token, "#/oauth2/access_token"))
    if oauth2.refresh_token is None:
        raise InvalidRequest.at("#/oauth2", "Give an access_token, a refresh_token, or both.")
    return AccessToken("")


def grant_of(oauth2: OAuth2Input | None, imap_host: str) -> Grant | None:
    """What to renew access tokens with, where the caller gave it; ``imap_host`` tells the endpoint if nothing else."""
    if oauth2 is None:
        return None
    if oauth2.refresh_token is None:
        if oauth2.client_id or oauth2.client_secret or oauth2.token_url:
            raise InvalidRequest.at(
                "#/oauth2/refresh_token", "The other fields are for a refresh_token: give it, too."
            )
        return None
    if oauth2.client_id is None:
        raise InvalidRequest.at(
            "#/oauth2/client_id", "Give the client_id that the refresh_token was given to."
        )
    endpoint = _endpoint(oauth2, imap_host)
    return Grant(
        token_url=endpoint.url,
        client_id=oauth2.client_id,
        refresh_token=oauth2.refresh_token,
        client_secret=oauth2.client_secret,
        scope=endpoint.scope,
    )


def _endpoint(oauth2: OAuth2Input, imap_host: str) -> TokenEndpoint:
    if oauth2.token_url is not None:
        if oauth2.provider is not None:
            raise InvalidRequest.at("#/oauth2/token_url", "Give provider or token_url, not both.")
        return TokenEndpoint(oauth2.token_url)
    if oauth2.provider is not None:
        endpoint = find_token_endpoint(oauth2.provider)
        if endpoint is None:
            raise InvalidRequest.at(
                "#/oauth2/provider",
                "This is google, microsoft, microsoft:<tenant>, yahoo, zoho or zoho:<data centre>; "
                "others are named by their token_url.",
            )
        return endpoint
    endpoint = find_token_endpoint_by_host(imap_host)
    if endpoint is None:
        raise InvalidRequest.at(
            "#/oauth2/token_url",
            "The token endpoint of this mailbox is not known here: name provider or token_url.",
        )
    return endpoint
