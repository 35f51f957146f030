"""`/metrics`: true to what happened, silent about whose mail it is, and all of it on the dashboard."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from cbemail.api.routes import OPERATIONS
from tests.certificates import Certificates
from tests.fakes.script import STALL
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration import merges
from tests.integration.conftest import API_KEY, Mailbox, environment, serving
from tests.integration.gate import Gate
from tests.integration.scripted import scripted_mailbox

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "cbemail.json"
MESSAGE = {"to": "ann@example.net", "subject": "A subject of ours", "body": "x"}
_PATIENCE = 30.0


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file)


@pytest.fixture
async def mailbox(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    async with scripted_mailbox(base_url, imap_server, smtp_server) as mailbox:
        yield mailbox


Values = dict[tuple[str, ...], float]


async def scrape(client: httpx.AsyncClient) -> Values:
    """Every sample there is: by its name and the values of its labels."""
    response = await client.get("/metrics", headers={"X-API-Key": API_KEY})
    assert response.status_code == 200, response.text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def until(client: httpx.AsyncClient, fits: Callable[[Values], bool]) -> Values:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(_PATIENCE):
        while True:
            values = await scrape(client)
            if fits(values):
                return values
            await asyncio.wait({never}, timeout=0.02)


# ---- who may see it


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": API_KEY}, 200),
        ({"X-API-Key": "another"}, 401),
        ({"Authorization": f"Bearer {API_KEY}"}, 200),
    ],
)
async def test_where_there_are_api_keys_it_takes_one(
    client: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    response = await client.get("/metrics", headers=headers)

    assert response.status_code == status


async def test_a_session_is_not_enough(mailbox: Mailbox) -> None:
    response = await mailbox.get("/metrics")

    assert response.status_code == 401


@pytest.mark.parametrize(
    ("client_address", "status"), [("", 200), ("::ffff:127.0.0.1", 200), ("203.0.113.9", 401)]
)
async def test_without_api_keys_it_is_for_this_machine_and_not_for_who_a_proxy_speaks_for(
    environ: dict[str, str], client_address: str, status: int
) -> None:
    headers = {"X-Forwarded-For": client_address} if client_address else {}
    async with (
        serving(environ | {"API_KEYS": ""}) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        response = await client.get("/metrics", headers=headers)

    assert response.status_code == status


async def test_who_asks_for_openmetrics_gets_it(client: httpx.AsyncClient) -> None:
    accept = "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"

    response = await client.get("/metrics", headers={"X-API-Key": API_KEY, "Accept": accept})

    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert list(parse_openmetrics(response.text))  # type: ignore[no-untyped-call]  # it has no types


# ---- what it says


async def test_requests_are_counted_by_operation_and_class_of_status(
    client: httpx.AsyncClient,
) -> None:
    for path in ("/healthz", "/healthz", "/nowhere", "/api/mailbox/folders"):
        await client.get(path)

    values = await scrape(client)

    assert values["cbemail_requests_total", "get_health", "2xx"] == 2
    assert values["cbemail_requests_total", "none", "4xx"] == 1
    assert values["cbemail_requests_total", "list_folders", "4xx"] == 1
    assert values["cbemail_request_seconds_count", "get_health"] == 2
    assert values["cbemail_problems_total", "unauthenticated"] == 1


async def test_two_services_in_one_process_do_not_count_for_each_other(
    client: httpx.AsyncClient, environ: dict[str, str], tmp_path: Path
) -> None:
    async with (
        serving(environ | {"DB_PATH": str(tmp_path / "other" / "store.duckdb")}) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as other,
    ):
        await other.get("/healthz")

        assert ("cbemail_requests_total", "get_health", "2xx") not in await scrape(client)
        assert ("cbemail_requests_total", "get_health", "2xx") in await scrape(other)


async def test_reading_mail_shows_in_phases_connections_and_cache(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    await mailbox.get("/api/mailbox/messages")
    await mailbox.get("/api/mailbox/messages")

    values = await scrape(client)

    assert values["cbemail_sessions",] == 1
    assert values["cbemail_connections", "imap", "idle"] == 1
    assert values["cbemail_connections", "imap", "lent"] == 0
    assert values["cbemail_cache_lookups_total", "miss"] >= 1
    assert values["cbemail_cache_lookups_total", "hit"] >= 1
    assert values["cbemail_cache_rows",] == 1
    assert values["cbemail_cache_bytes",] > 0
    assert values["cbemail_cache_disk_bytes",] > 0
    assert values["cbemail_request_phase_seconds_total", "imap"] > 0
    assert values["cbemail_store_commit_seconds_count",] >= 1
    assert values["cbemail_store_commit_size_sum",] >= 1


async def test_what_is_on_its_way_is_lent_and_sending_and_then_sent(
    client: httpx.AsyncClient, mailbox: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    request = asyncio.create_task(mailbox.post("/api/send", MESSAGE))

    under_way = await until(client, lambda found: found["cbemail_connections", "smtp", "lent"] == 1)
    gate.open()
    await request
    afterwards = await scrape(client)

    assert under_way["cbemail_outbox_messages", "sending"] == 1
    assert under_way["cbemail_attempts_total", "sent", "direct"] == 0
    assert afterwards["cbemail_connections", "smtp", "idle"] == 1
    assert afterwards["cbemail_outbox_messages", "sending"] == 0
    assert afterwards["cbemail_attempts_total", "sent", "direct"] == 1


async def test_batches_are_counted_by_state_and_their_attempts_by_outcome(
    client: httpx.AsyncClient, mailbox: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r1@", b"550 5.1.1 nobody\r\n")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    scheduled = await merges.started(mailbox, merges.merge(3, send_at=tomorrow))
    batch = await merges.started(mailbox, merges.merge(3))
    await merges.until(mailbox, batch)

    values = await scrape(client)

    assert scheduled["state"] == "scheduled"
    assert values["cbemail_outbox_batches", "scheduled"] == 1
    assert values["cbemail_outbox_messages", "queued"] == 3
    assert values["cbemail_attempts_total", "sent", "queue"] == 2
    assert values["cbemail_attempts_total", "failed", "queue"] == 1


async def test_who_waits_for_a_connection_is_seen_and_so_is_how_long(
    client: httpx.AsyncClient, mailbox: Mailbox, imap_server: ScriptedImap
) -> None:
    imap_server.on("UID FETCH", STALL)
    readers = [asyncio.create_task(mailbox.get("/api/mailbox/messages/7/raw")) for _ in range(4)]

    waiting = await until(client, lambda found: found["cbemail_pool_waiting", "imap"] == 1)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    afterwards = await until(
        client, lambda found: found["cbemail_pool_wait_seconds_count", "imap"] >= 1
    )

    assert waiting["cbemail_connections", "imap", "lent"] == 3
    assert afterwards["cbemail_pool_waiting", "imap"] == 0


async def test_no_label_tells_whose_mail_it_is(
    client: httpx.AsyncClient, mailbox: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    await mailbox.get("/api/mailbox/messages", folder="A folder of ours")
    await mailbox.post("/api/send", MESSAGE)
    await mailbox.client.get("/secret-path", headers={"X-Request-ID": "req-of-ours"})

    response = await client.get("/metrics", headers={"X-API-Key": API_KEY})

    labels = {
        value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        for value in sample.labels.values()
    }
    told = [
        each
        for each in (mailbox.session_id, API_KEY, "of ours", "of-ours", "secret")
        if each in response.text
    ]
    assert told == []
    assert not [label for label in labels if "@" in label or "/" in label or "localhost" in label]
    assert str(smtp_server.port) not in labels


# ---- the dashboard


def expressions(panels: Iterable[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def names_of(families: Iterable[Metric]) -> dict[str, set[str]]:
    """The names of samples that each family may have."""
    suffixes = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_sum", "_count"),
        "info": ("_info",),
    }
    return {
        family.name: {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
        for family in families
    }


async def test_the_dashboard_shows_what_there_is_and_nothing_that_there_is_not(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/metrics", headers={"X-API-Key": API_KEY})
    families = names_of(text_string_to_metric_families(response.text))
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))

    used = set(re.findall(r"\b(?:cbemail|process)_\w+", " ".join(expressions(dashboard["panels"]))))

    assert used - set().union(*families.values()) == set()
    ours = {name for name in families if name.startswith("cbemail")}
    assert {name for name in ours if not families[name] & used} == set()


def test_the_dashboard_names_only_operations_that_there_are_and_its_own_variables() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    text = " ".join(expressions(dashboard["panels"]))
    excluded = re.findall(r'operation!~"([^"]*)"', text)[0].split("|")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}

    names = [operation.name for operation in OPERATIONS]

    assert [each for each in excluded if not any(re.fullmatch(each, name) for name in names)] == []
    assert set(re.findall(r"\$(\w+)", text)) - {"__rate_interval"} <= variables
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"] if "targets" in panel} == {
        "${datasource}"
    }
