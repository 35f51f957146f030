"""`/api/discover`: the mail servers of an address, without logging in."""

from msgspec import Struct
from starlette.responses import Response

from cbemail.api import auth
from cbemail.api.codec import json_response
from cbemail.api.operation import Call
from cbemail.api.servers import (
    ServerView,
    bare_address,
    find_setup,
    refuse_unknown,
    view_of_server,
)
from cbemail.sessions.provider import Source


class DiscoverQuery(Struct, frozen=True, forbid_unknown_fields=True):
    email: str


class Discovered(Struct, frozen=True):
    """What `POST /api/sessions` would use, and who says so. ``notes`` say what the provider wants of its users first."""

    provider: str | None
    imap: ServerView
    smtp: ServerView
    source: Source
    notes: list[str]


async def discover(call: Call[DiscoverQuery, None]) -> Response:
    """The servers of an address: of a known provider, or as its domain, DNS or Thunderbird's database have them."""
    if call.services.settings.require_api_key:  # who may not log in need not have others asked
        auth.require_service(call.request, call.services)
    email = bare_address(call.query.email)
    setup = await find_setup(call.request, call.services, email)
    if setup is None:
        refuse_unknown("#/email", email)
    answer = Discovered(
        provider=setup.provider,
        imap=view_of_server(setup.imap.server_for(email)),
        smtp=view_of_server(setup.smtp.server_for(email)),
        source=setup.source,
        notes=list(setup.notes),
    )
    return json_response(answer)
