"""Access tokens in time: renewed before they expire or when they are refused, once for everybody, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from msgspec import structs

from cbemail.errors import (
    CredentialsRejected,
    CredentialsStale,
    HostNotAllowed,
    UpstreamUnavailable,
)
from cbemail.hosts import AccessToken, MailHosts
from cbemail.ids import SessionId
from cbemail.outbox.dispatch import Policy
from cbemail.sessions.login import Login
from cbemail.sessions.oauth2 import Grant
from cbemail.sessions.registry import Sessions
from cbemail.sessions.renewal import AHEAD, FRESH, Renewals
from cbemail.store.batch_records import BatchState
from cbemail.store.database import StatementFailed
from cbemail.store.records import SessionRecord, SessionState
from cbemail.web import Web
from tests.certificates import Certificates
from tests.fakes.script import NORMAL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.token_endpoint import TokenEndpoint
from tests.unit.outbox.mailroom import SOON
from tests.unit.outbox.office import PATIENCE, Office, open_office, until

HOUR = 3600
REFUSAL = b"535 5.7.3 Authentication unsuccessful\r\n"  # behind AUTH


@pytest.fixture
async def endpoint(
    imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> AsyncIterator[TokenEndpoint]:
    async with TokenEndpoint(rotates=True) as endpoint:
        endpoint.good_at(imap_server, smtp_server)
        yield endpoint


@pytest.fixture
async def office(
    tmp_path: Path,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
    certificates: Certificates,
) -> AsyncIterator[Office]:
    async with open_office(
        tmp_path / "cbemail.duckdb",
        smtp_server,
        imap_server,
        certificates,
        policy=Policy(retry=SOON, restart_seconds=0.01),
    ) as office:
        yield office


@pytest.fixture
async def joe(office: Office, endpoint: TokenEndpoint) -> SessionId:
    """A session with an access token for an hour."""
    return await session_with(office, endpoint)


def oauth2_login(office: Office, endpoint: TokenEndpoint, token: str = "") -> Login:
    grant = Grant(endpoint.token_url, "the-client", endpoint.refresh_token)
    secret = AccessToken(token)
    return structs.replace(office.login, imap_secret=secret, smtp_secret=secret, grant=grant)


async def session_with(office: Office, endpoint: TokenEndpoint, token: str = "") -> SessionId:
    return await _opened(office, oauth2_login(office, endpoint, token))


async def _opened(office: Office, login: Login) -> SessionId:
    opened = await office.sessions.create("joe@example.org", None, login)
    opened.imap.close()
    await opened.smtp.close()
    return opened.record.id


async def log_in(sessions: Sessions, session_id: SessionId) -> None:
    imap = await sessions.credentials.connect_imap(session_id)
    imap.close()


async def refusal(sessions: Sessions, session_id: SessionId) -> UpstreamUnavailable:
    with pytest.raises(UpstreamUnavailable) as caught:
        await log_in(sessions, session_id)
    return caught.value


def kept(office: Office, session_id: SessionId) -> Grant:
    record = office.sessions.require(session_id)
    *_, grant = office.vault.open_secrets(session_id, record.sealed_credentials)
    assert grant is not None
    return grant


async def kept_on_disk(office: Office, session_id: SessionId) -> Grant:
    [row] = await office.database.fetch("load_sessions")
    *_, grant = office.vault.open_secrets(session_id, bytes(row["sealed_credentials"]))
    assert grant is not None
    return grant


# ---- the first token


async def test_a_refresh_token_gets_a_first_access_token(
    office: Office, endpoint: TokenEndpoint
) -> None:
    joe = await session_with(office, endpoint)

    assert len(endpoint.forms) == 1
    assert office.sessions.require(joe).auth == "oauth2"
    assert (await kept_on_disk(office, joe)).refresh_token == "refresh-1"


async def test_an_access_token_that_is_good_is_used_as_it_is(
    office: Office, endpoint: TokenEndpoint, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    imap_server.tokens.add("given")
    smtp_server.tokens.add("given")

    await session_with(office, endpoint, "given")

    assert endpoint.forms == []


async def test_an_access_token_that_is_refused_is_renewed_once(
    office: Office, endpoint: TokenEndpoint
) -> None:
    await session_with(office, endpoint, "expired")

    assert len(endpoint.forms) == 1


async def test_a_token_that_is_refused_when_it_is_new_makes_no_session(
    office: Office, endpoint: TokenEndpoint
) -> None:
    endpoint.good_at()

    with pytest.raises(CredentialsRejected):
        await session_with(office, endpoint, "expired")

    assert len(endpoint.forms) == 1
    assert office.sessions.count() == 0


async def test_a_token_endpoint_inside_is_refused_before_anything_is_contacted(
    office: Office, endpoint: TokenEndpoint, imap_server: ScriptedImap
) -> None:
    login = oauth2_login(office, endpoint, "given")
    assert login.grant is not None
    grant = structs.replace(login.grant, token_url="https://10.0.0.1/token")

    with pytest.raises(HostNotAllowed):
        await _opened(office, structs.replace(login, grant=grant))

    assert imap_server.connections == 0


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "//127.0.0.1/", "http://", "http://a:b/", "x"])
async def test_what_is_no_url_of_a_token_endpoint_is_refused(
    office: Office, endpoint: TokenEndpoint, url: str
) -> None:
    login = oauth2_login(office, endpoint)
    assert login.grant is not None

    with pytest.raises(HostNotAllowed, match="URL"):
        await _opened(
            office, structs.replace(login, grant=structs.replace(login.grant, token_url=url))
        )


# ---- in time


async def test_a_token_is_renewed_shortly_before_it_expires(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR - AHEAD.total_seconds() - 1)
    await log_in(office.sessions, joe)
    before = len(endpoint.forms)
    office.clock.advance(seconds=1)

    await log_in(office.sessions, joe)

    assert (before, len(endpoint.forms)) == (1, 2)
    assert kept(office, joe).expires_at == office.clock() + timedelta(seconds=HOUR)


async def test_at_the_moment_of_expiry_fifty_logins_cause_one_refresh(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR)

    await asyncio.gather(*(log_in(office.sessions, joe) for _ in range(50)))

    assert [form["refresh_token"] for form in endpoint.forms] == ["refresh-0", "refresh-1"]


async def test_a_token_whose_expiry_nobody_told_is_renewed_when_it_is_refused(
    office: Office, endpoint: TokenEndpoint, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    for server in (imap_server, smtp_server):
        server.tokens.add("given")
    joe = await session_with(office, endpoint, "given")
    endpoint.revoke_access()

    await asyncio.gather(*(log_in(office.sessions, joe) for _ in range(5)))

    assert len(endpoint.forms) == 1
    assert office.sessions.require(joe).state is SessionState.ACTIVE


async def test_a_late_refusal_of_the_old_token_renews_nothing(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, imap_server: ScriptedImap
) -> None:
    """Its refresh token is used up by then; to use it again could look like theft to the provider."""
    go_on = asyncio.Event()

    async def late(_: bytes) -> bytes:
        await go_on.wait()
        return b"{tag} NO [AUTHENTICATIONFAILED] expired\r\n"

    office.clock.advance(seconds=HOUR / 2)
    imap_server.on("AUTHENTICATE", late, NORMAL)
    logins = imap_server.count("AUTHENTICATE")
    first = asyncio.create_task(log_in(office.sessions, joe))
    await imap_server.heard("AUTHENTICATE", logins + 1)
    office.clock.advance(seconds=HOUR / 2)
    await log_in(office.sessions, joe)

    go_on.set()
    await first

    assert [form["refresh_token"] for form in endpoint.forms] == ["refresh-0", "refresh-1"]


async def test_two_sessions_are_renewed_side_by_side(
    office: Office, endpoint: TokenEndpoint
) -> None:
    endpoint.rotates = False
    both = [await session_with(office, endpoint) for _ in range(2)]
    office.clock.advance(seconds=HOUR)

    await asyncio.gather(*(log_in(office.sessions, each) for each in both * 5))

    assert len(endpoint.forms) == 4


@pytest.mark.parametrize("seconds", [HOUR, HOUR / 2])
async def test_health_renews_a_token_that_is_due_or_refused(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, seconds: float
) -> None:
    endpoint.revoke_access()
    office.clock.advance(seconds=seconds)

    health = await office.sessions.credentials.check(joe)

    assert (health.imap.ok, health.smtp.ok) == (True, True)


# ---- kept


async def test_a_rotated_refresh_token_is_on_disk_when_its_access_token_is_used(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, imap_server: ScriptedImap
) -> None:
    office.clock.advance(seconds=HOUR)
    seen: list[str] = []

    async def look(_: bytes) -> object:
        seen.append((await kept_on_disk(office, joe)).refresh_token)
        return NORMAL

    imap_server.on("AUTHENTICATE", look)  # type: ignore[arg-type]  # it gives a reply
    await log_in(office.sessions, joe)

    assert seen == ["refresh-2"]


async def test_a_refresh_goes_on_when_whoever_began_it_has_gone(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.gate.clear()
    first = asyncio.create_task(log_in(office.sessions, joe))
    second = asyncio.create_task(log_in(office.sessions, joe))
    await endpoint.asked(2)

    first.cancel()
    await asyncio.wait({first})
    endpoint.gate.set()
    await second

    assert len(endpoint.forms) == 2
    assert kept(office, joe).refresh_token == "refresh-2"


async def test_a_refresh_that_nobody_waits_for_any_more_is_kept_at_the_end(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.gate.clear()
    alone = asyncio.create_task(log_in(office.sessions, joe))
    await endpoint.asked(2)
    alone.cancel()
    await asyncio.wait({alone})

    closing = asyncio.create_task(office.sessions.credentials.renewals.close())
    endpoint.gate.set()
    await closing

    assert (await kept_on_disk(office, joe)).refresh_token == "refresh-2"


async def test_new_tokens_that_cannot_be_stored_are_not_used_and_not_lost(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, imap_server: ScriptedImap
) -> None:
    office.clock.advance(seconds=HOUR)
    logins = imap_server.count("AUTHENTICATE")
    office.database.fails["renew_credentials"] = 1

    with pytest.raises(StatementFailed):
        await log_in(office.sessions, joe)
    unused = imap_server.count("AUTHENTICATE") == logins
    await log_in(office.sessions, joe)

    assert unused
    assert len(endpoint.forms) == 2
    assert (await kept_on_disk(office, joe)).refresh_token == "refresh-2"


async def test_credentials_that_are_replaced_during_a_refresh_stay(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.gate.clear()
    waiting = asyncio.create_task(log_in(office.sessions, joe))
    await endpoint.asked(2)

    await office.sessions.replace_credentials(joe, office.login)
    endpoint.gate.set()
    await waiting

    record = office.sessions.require(joe)
    [row] = await office.database.fetch("load_sessions")
    assert record.auth == "password"
    assert office.vault.open_secrets(joe, record.sealed_credentials)[2] is None
    assert bytes(row["sealed_credentials"]) == record.sealed_credentials


async def test_a_session_that_ends_during_a_refresh_has_ended(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.gate.clear()
    waiting = asyncio.create_task(log_in(office.sessions, joe))
    await endpoint.asked(2)

    await office.sessions.end(joe)
    endpoint.gate.set()
    await asyncio.wait({waiting})

    assert office.sessions.count() == 0
    assert await office.database.fetch("load_sessions") == []


async def test_credentials_that_are_replaced_while_new_tokens_are_stored_are_no_failure(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    async def replaced(record: SessionRecord, _: Login) -> None:
        renewals.forget(record)

    hosts = MailHosts(allow_networks=[ip_network("127.0.0.0/8")], allow_ports=[])
    web = Web(hosts)
    renewals = Renewals(hosts, web, office.clock, replaced)

    await renewals.renew(office.sessions.require(joe), oauth2_login(office, endpoint))
    await web.close()

    assert renewals.outcomes["renewed"] == 1


# ---- refused


@pytest.mark.parametrize(
    ("error", "sentence"), [("invalid_grant", "authorise"), ("invalid_client", "client_secret")]
)
async def test_a_grant_that_is_refused_makes_the_session_stale_and_says_so(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, error: str, sentence: str
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.on(400, {"error": error})

    for _ in range(2):
        with pytest.raises(CredentialsStale, match=rf"{sentence}.*[a-z]\. [A-Z].*[a-z]\.$"):
            await log_in(office.sessions, joe)

    assert len(endpoint.forms) == 2
    assert office.sessions.require(joe).state is SessionState.CREDENTIALS_STALE


async def test_a_token_that_is_refused_right_after_its_refresh_makes_the_session_stale(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    endpoint.good_at()
    office.clock.advance(seconds=HOUR)

    results = await asyncio.gather(
        *(log_in(office.sessions, joe) for _ in range(5)), return_exceptions=True
    )

    assert {type(result) for result in results} <= {CredentialsStale, CredentialsRejected}
    assert len(endpoint.forms) == 2
    assert office.sessions.require(joe).state is SessionState.CREDENTIALS_STALE


async def test_a_login_that_is_never_accepted_is_tried_twice_however_soon_tokens_expire(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, imap_server: ScriptedImap
) -> None:
    """A server takes its time to refuse. Each token would have had its own by then."""

    async def slowly(_: bytes) -> bytes:
        office.clock.advance(seconds=2)
        return b"{tag} NO [AUTHENTICATIONFAILED] no\r\n"

    logins = imap_server.count("AUTHENTICATE")
    endpoint.lives = [1]
    imap_server.on("AUTHENTICATE", slowly)
    office.clock.advance(seconds=HOUR)

    with pytest.raises(CredentialsStale):
        async with asyncio.timeout(PATIENCE):
            await log_in(office.sessions, joe)

    assert imap_server.count("AUTHENTICATE") == logins + 2


async def test_new_tokens_make_a_stale_session_active(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.on(400, {"error": "invalid_grant"})
    with pytest.raises(CredentialsStale):
        await log_in(office.sessions, joe)

    await office.sessions.replace_credentials(joe, oauth2_login(office, endpoint))
    await log_in(office.sessions, joe)

    assert office.sessions.require(joe).state is SessionState.ACTIVE


# ---- an endpoint in trouble


async def test_an_endpoint_in_trouble_is_no_bad_credential_and_is_left_alone_for_a_while(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, imap_server: ScriptedImap
) -> None:
    office.clock.advance(seconds=HOUR)
    logins = imap_server.count("AUTHENTICATE")
    endpoint.on(503, {})

    errors = [await refusal(office.sessions, joe) for _ in range(3)]

    assert all(error.retry_after for error in errors)
    assert len(endpoint.forms) == 2, "it was asked again at once"
    assert imap_server.count("AUTHENTICATE") == logins, "an expired token was tried"
    assert office.sessions.require(joe).state is SessionState.ACTIVE


async def test_a_token_that_is_good_yet_is_used_while_the_endpoint_is_in_trouble(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR - 30)
    endpoint.on(503, {})

    await log_in(office.sessions, joe)

    assert len(endpoint.forms) == 2


async def test_an_endpoint_in_trouble_is_no_failure_of_the_mail_server(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    """Or the pool would leave the mail server alone, and every other session at it."""
    office.clock.advance(seconds=HOUR)
    endpoint.on(503, {})

    for _ in range(6):
        with pytest.raises(UpstreamUnavailable):
            async with office.smtp.lease(joe):
                pass

    assert office.smtp.left_alone == 0


async def test_health_tells_an_endpoint_in_trouble_of_both_servers(
    office: Office, endpoint: TokenEndpoint, joe: SessionId
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.on(503, {})

    health = await office.sessions.credentials.check(joe)

    assert (health.imap.error, health.smtp.error) == ("upstream-unavailable",) * 2


@pytest.mark.parametrize(
    "tries",
    [("connect", "connect", "connect", "check"), ("check", "connect")],
    ids=["found by a connection", "found by health"],
)
async def test_a_token_that_was_refused_is_not_tried_again_while_the_endpoint_is_in_trouble(
    office: Office,
    endpoint: TokenEndpoint,
    joe: SessionId,
    imap_server: ScriptedImap,
    tries: tuple[str, ...],
) -> None:
    """A batch comes back every two seconds. Servers lock accounts for less."""
    endpoint.revoke_access()
    office.clock.advance(seconds=FRESH.total_seconds() + 1)
    logins = imap_server.count("AUTHENTICATE")
    endpoint.on(503, {})

    for each in tries:
        if each == "connect":
            await refusal(office.sessions, joe)
        else:
            await office.sessions.credentials.check(joe)

    assert imap_server.count("AUTHENTICATE") == logins + 1


# ---- batches


async def test_a_batch_goes_on_with_a_new_token_when_the_old_one_has_expired(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, smtp_server: ScriptedSmtp
) -> None:
    """Expired on the server's clock only, between two messages of one connection."""

    async def expired(_: bytes) -> Reply:
        return NORMAL if len(endpoint.forms) == 2 else REFUSAL

    office.clock.advance(seconds=FRESH.total_seconds() + 1)
    smtp_server.on("MAIL", NORMAL, expired)

    live = await office.started(joe, 5)
    await until(live)

    assert len(endpoint.forms) == 2
    assert sorted(message.sender for message in smtp_server.messages) == [
        f"s{number}@example.org" for number in range(5)
    ]
    assert office.sessions.require(joe).state is SessionState.ACTIVE


async def test_a_token_that_lives_for_minutes_is_renewed_when_it_has_expired_between_messages(
    office: Office, endpoint: TokenEndpoint, smtp_server: ScriptedSmtp
) -> None:
    """It is as fresh as one that is refused for another reason, but for what the endpoint said of it."""

    async def expired(_: bytes) -> Reply:
        if len(endpoint.forms) == 2:
            return NORMAL
        office.clock.advance(seconds=121)
        return REFUSAL

    endpoint.lives = [120, HOUR]
    joe = await session_with(office, endpoint)
    smtp_server.on("MAIL", NORMAL, expired)

    live = await office.started(joe, 5)
    await until(live)

    assert len(smtp_server.messages) == 5
    assert office.sessions.require(joe).state is SessionState.ACTIVE


async def test_a_batch_waits_for_an_endpoint_in_trouble(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, smtp_server: ScriptedSmtp
) -> None:
    office.clock.advance(seconds=HOUR)
    endpoint.on(429, {})

    live = await office.started(joe, 2)
    await endpoint.asked(2)
    await office.quiet()

    assert live.record.state is BatchState.RUNNING
    assert office.sessions.require(joe).state is SessionState.ACTIVE


async def test_a_login_that_is_refused_behind_the_door_with_a_new_token_is_stale(
    office: Office, endpoint: TokenEndpoint, joe: SessionId, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("MAIL", b"535 5.7.8 who are you\r\n")

    live = await office.started(joe, 2)
    await until(live, BatchState.PAUSED)
    await office.quiet()

    assert live.record.paused_reason == "credentials-stale"
    assert office.sessions.require(joe).state is SessionState.CREDENTIALS_STALE
