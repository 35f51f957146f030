"""`GET /metrics`: what the service counts and what it has open, as Prometheus reads it.

Nothing is pushed: the pools, the outbox and the store are asked when somebody scrapes. No label holds an address, a
host, a session or a path. Labels are of small closed sets, and tell nothing of whose mail it is.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from cbemail.api.operation import Call
from cbemail.imap.pool import ImapPool
from cbemail.mailbox.cache import SummaryCache
from cbemail.metrics import Distribution, PoolStatistics, RequestTally
from cbemail.outbox.dispatch import Dispatch
from cbemail.outbox.outbox import Outbox
from cbemail.sessions.renewal import Renewals
from cbemail.smtp.pool import SmtpPool
from cbemail.store.batch_records import BatchState
from cbemail.store.group_commit import CommitStatistics
from cbemail.store.records import SendState

_WAITING = (SendState.QUEUED, SendState.SENDING, SendState.DEFERRED, SendState.UNCERTAIN)
_OUTCOMES = (SendState.SENT, SendState.FAILED, SendState.DEFERRED, SendState.UNCERTAIN)
_REFRESHES = ("renewed", "refused", "failed")
_UNDER_WAY = (BatchState.SCHEDULED, BatchState.QUEUED, BatchState.RUNNING, BatchState.PAUSED)

_Values = Mapping[tuple[str, ...], float]  # by the values of the labels


async def get_metrics(call: Call[object, None]) -> Response:
    """Metrics for Prometheus: with an API key where `API_KEYS` are set, else to this machine only.

    The key may be sent as `Authorization: Bearer …`, too, as Prometheus does.
    """
    encode, media_type = choose_encoder(call.request.headers.get("accept", ""))
    return Response(encode(call.services.metrics), headers={"Content-Type": media_type})


class Sources(Struct, frozen=True):
    """Those who are asked at every scrape."""

    requests: RequestTally
    lag: Distribution  # of the event loop
    sessions: Callable[[], int]
    renewals: Renewals
    imap: ImapPool
    smtp: SmtpPool
    cache: SummaryCache
    outbox: Outbox
    dispatch: Dispatch
    commits: Callable[[], CommitStatistics]


def new_registry(sources: Sources) -> CollectorRegistry:
    """A registry of the service's own, so that two services in one process do not count for each other."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # memory, descriptors, processor time
    registry.register(_ServiceCollector(sources))
    return registry


class _ServiceCollector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        yield InfoMetricFamily("cbemail", "The service.", {"version": version("cbemail")})
        yield _gauge("cbemail_sessions", "Sessions there are.", (), {(): sources.sessions()})
        yield _counter(
            "cbemail_token_refreshes_total",
            "Requests to token endpoints: renewed, refused for good, or failed for the moment.",
            ("outcome",),
            {(outcome,): sources.renewals.outcomes[outcome] for outcome in _REFRESHES},
        )
        yield from _of_requests(sources.requests)
        yield from _of_connections(sources.imap, sources.smtp)
        yield from _of_the_outbox(sources.outbox, sources.dispatch)
        yield from _of_the_cache(sources.cache)
        yield from _of_the_store(sources.commits())
        yield _histogram(
            "cbemail_event_loop_lag_seconds",
            "How much later than due the event loop turns to something.",
            (),
            {(): sources.lag},
        )


def _of_requests(tally: RequestTally) -> Iterator[Metric]:
    yield _counter(
        "cbemail_requests_total",
        "Requests by operation and class of status; `cut`: the client left before its answer began.",
        ("operation", "status"),
        {
            (operation, f"{status}xx" if status else "cut"): number
            for (operation, status), number in tally.answers.items()
        },
    )
    yield _histogram(
        "cbemail_request_seconds",
        "How long requests took, from the header to the last octet of the answer.",
        ("operation",),
        {(operation,): seconds for operation, seconds in tally.seconds.items()},
    )
    yield _counter(
        "cbemail_request_phase_seconds_total",
        "Time requests spent in each phase: auth, wait (for a connection), imap, smtp, parse.",
        ("phase",),
        {(phase,): seconds for phase, seconds in tally.phases.items()},
    )
    yield _counter(
        "cbemail_problems_total",
        "Requests answered with a problem, by its code.",
        ("code",),
        {(code,): number for code, number in tally.problems.items()},
    )


def _of_connections(imap: ImapPool, smtp: SmtpPool) -> Iterator[Metric]:
    pools = {"imap": imap.statistics(), "smtp": smtp.statistics()}
    yield _gauge(
        "cbemail_connections",
        "Connections to mail servers: opening, lent to a request or a batch, or idle.",
        ("protocol", "state"),
        {
            (protocol, state): number
            for protocol, pool in pools.items()
            for state, number in _by_state(pool).items()
        },
    )
    yield _gauge(
        "cbemail_pool_waiting",
        "Requests and batches that wait for a connection.",
        ("protocol",),
        {(protocol,): pool.waiting for protocol, pool in pools.items()},
    )
    yield _histogram(
        "cbemail_pool_wait_seconds",
        "How long those waited who had to wait for a connection.",
        ("protocol",),
        {("imap",): imap.waits, ("smtp",): smtp.waits},
    )
    yield _gauge(
        "cbemail_smtp_hosts_left_alone",
        "Mail servers that could not be reached several times in a row.",
        (),
        {(): smtp.left_alone},
    )


def _by_state(pool: PoolStatistics) -> dict[str, int]:
    return {"opening": pool.opening, "lent": pool.lent, "idle": pool.idle}


def _of_the_outbox(outbox: Outbox, dispatch: Dispatch) -> Iterator[Metric]:
    census = dispatch.census()
    waiting: dict[tuple[str, ...], float] = {
        (state.value,): census.messages[state] for state in _WAITING
    }
    waiting[SendState.SENDING.value,] += outbox.sending
    yield _gauge(
        "cbemail_outbox_messages",
        "Messages by state: those being sent, and all of batches that are not over.",
        ("state",),
        waiting,
    )
    yield _gauge(
        "cbemail_outbox_batches",
        "Batches that are not over, by state; a single queued message is one, too.",
        ("state",),
        {(state.value,): census.batches[state] for state in _UNDER_WAY},
    )
    yield _gauge(
        "cbemail_outbox_troubled_batches",
        "Batches that failed by a defect, and are about to be taken up again.",
        (),
        {(): len(dispatch.troubled)},
    )
    yield _counter(
        "cbemail_attempts_total",
        "Attempts to send a message by outcome; `direct` while the client waits, or of the `queue`.",
        ("road", "outcome"),
        {
            (road, state.value): outcomes[state]
            for road, outcomes in (
                ("direct", outbox.outcomes),
                ("queue", dispatch.journal.outcomes),
            )
            for state in _OUTCOMES
        },
    )


def _of_the_cache(cache: SummaryCache) -> Iterator[Metric]:
    known = cache.statistics()
    yield _counter(
        "cbemail_cache_lookups_total",
        "Messages that were looked up in the cache of rows: there in memory (hit), or on disk (stored), or not (miss).",
        ("result",),
        {("hit",): known.hits, ("stored",): known.stored, ("miss",): known.misses},
    )
    yield _gauge("cbemail_cache_rows", "Messages in the cache, in memory.", (), {(): known.rows})
    yield _gauge("cbemail_cache_bytes", "About how large it is.", (), {(): known.octets})
    yield _gauge(
        "cbemail_cache_disk_bytes", "What is cached on disk.", (), {(): known.stored_octets}
    )


def _of_the_store(commits: CommitStatistics) -> Iterator[Metric]:
    yield _histogram(
        "cbemail_store_commit_seconds", "How long a commit took.", (), {(): commits.seconds}
    )
    yield _histogram(
        "cbemail_store_commit_size", "Writes that shared a commit.", (), {(): commits.sizes}
    )
    yield _gauge(
        "cbemail_store_waiting", "Writes that wait for a commit.", (), {(): commits.waiting}
    )


def _gauge(name: str, about: str, labels: tuple[str, ...], values: _Values) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for given, value in values.items():
        family.add_metric(given, value)
    return family


def _counter(name: str, about: str, labels: tuple[str, ...], values: _Values) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for given, value in values.items():
        family.add_metric(given, value)
    return family


def _histogram(
    name: str, about: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Distribution]
) -> Metric:
    family = HistogramMetricFamily(name, about, labels=labels)
    for given, distribution in values.items():
        bounds = [*map(str, distribution.bounds), "+Inf"]
        buckets = list(zip(bounds, distribution.cumulative(), strict=True))
        family.add_metric(given, buckets, distribution.total)
    return family
