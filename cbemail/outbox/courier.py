"""Carries one batch to the mail server: claims what is due, and keeps as many senders at it as the server takes.

The order of events is what makes a crash harmless. A row's intent is on disk before its first octet leaves; its
outcome goes to disk together with the next intents (`outbox/sender`). So a connection never has more than four messages
that a restart could not tell the fate of, and no message waits for the disk.
"""

import asyncio
import logging
from datetime import datetime, timedelta

from cbemail.errors import (
    CbemailError,
    CredentialsStale,
    Overloaded,
    SessionNotFound,
    UpstreamError,
)
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.pacing import Upstream
from cbemail.outbox.sender import Orders, Sender, Tools
from cbemail.outbox.supply import Supply
from cbemail.outbox.workshop import Workshop

log = logging.getLogger(__name__)

SUSPECT = 3  # times its making has begun, and nothing came of it: then a row goes with few others, since it may be what stops us
POISON = 7  # and then it has failed: by then it went alone, twice
RECONNECT_SECONDS = 2.0  # after a connection that could not be had; the circuit knows when to stop
DEFECT_SECONDS = 5.0  # after a sender failed by a defect of ours
MOST_SECONDS = 60.0  # a courier looks again by then: the wall clock may be set


class Courier:
    """Runs until nothing of its batch is left to send, or it is told to stop. What it holds then, it puts back."""

    def __init__(
        self,
        batch: LiveBatch,
        workshop: Workshop,
        upstream: Upstream,
        tools: Tools,
        orders: Orders,
    ) -> None:
        self._batch = batch
        self._upstream = upstream
        self._tools = tools
        self._orders = orders
        self._supply = Supply(batch, upstream, tools.smtp, tools.clock)
        self._sender = Sender(batch, self._supply, workshop, upstream, tools, orders)
        self._sending: set[asyncio.Task[None]] = set()
        self._is_blocked = False
        self._now = asyncio.get_running_loop().time

    # ---- from outside

    def stop(self) -> None:
        """Begin nothing more. What is under way is carried to its end."""
        self._supply.stopping = True
        self._batch.nudged.set()

    def abort(self) -> None:
        """Break off what is under way: what had not come to its final dot was not sent."""
        self.stop()
        for task in self._sending:
            task.cancel()

    async def run(self) -> None:
        supply = self._supply
        try:
            while not supply.stopping and not self._batch.ended:
                self._batch.nudged.clear()
                if not supply.goes_on:
                    # Paused: it goes on here, if that ends before the last sender does.
                    await self._sender.give_back(supply.take_all())
                    if not self._sending:
                        break
                    await self._batch.nudged.wait()
                    continue
                await self._refill()
                if supply and supply.seconds_to_next_day() > 0:
                    # What senders have may go yet, and a pause would put it back.
                    if not self._sending:
                        self._keep_to_the_day()
                elif supply.may_begin:
                    self._engage()
                if not (supply or self._sending) and self._batch.due_at is None:
                    break
                await self._nudged()
        finally:
            supply.stopping = True
            await self._sender.give_back(supply.take_all())
            if self._sending:
                await asyncio.wait(self._sending)
            await self._sender.give_back(supply.take_all())

    # ---- what is due

    async def _refill(self) -> None:
        """Claim more where little is left and something is due; find out when the next will be, where nothing is."""
        batch, repository = self._batch, self._tools.repository
        now = self._tools.clock()
        if not self._supply.is_low or batch.due_at is None or batch.due_at > now:
            return
        limit = self._supply.claim_size
        rows = await repository.claim(
            batch.number, now=now, held=list(batch.held), limit=limit, suspects=SUSPECT
        )
        batch.take(rows)
        self._supply.add_claimed([row for row in rows if row.claims < POISON])
        if self._sender.is_making and self._supply.may_begin:
            await self._sender.count_claims()  # now, so that no sender has to wait for it
        for row in rows:
            if row.claims >= POISON:
                self._sender.fail(row, "The service stopped each time it came to this message.")
        if len(rows) < limit:
            await self._look_ahead(now, found=bool(rows))

    async def _look_ahead(self, now: datetime, *, found: bool) -> None:
        """When the next row will be due. One that is due, and was not given, waits for another that is being sent."""
        batch = self._batch
        batch.due_at = None  # before asking: what is deferred meanwhile sets it anew
        try:
            next_due = await self._tools.repository.next_due(batch.number, held=list(batch.held))
        except BaseException:
            batch.expect(now)
            raise
        if next_due is None:
            return
        if found or next_due > now or not self._sending:
            batch.expect(next_due)
        else:
            self._is_blocked = True

    async def _nudged(self) -> None:
        """Until something changes, or the time has come for something."""
        seconds = self._seconds_to_wait()
        try:
            async with asyncio.timeout(seconds):
                await self._batch.nudged.wait()
        except TimeoutError:
            pass

    def _seconds_to_wait(self) -> float:
        if self._supply:
            seconds = self._supply.seconds_to_wait()
            if seconds <= 0 and self._sending:
                return MOST_SECONDS  # they are at it, and nudge when they are done
        elif self._batch.due_at is not None:
            seconds = (self._batch.due_at - self._tools.clock()).total_seconds()
        else:
            return MOST_SECONDS
        return min(max(seconds, 0.01), MOST_SECONDS)

    def _keep_to_the_day(self) -> None:
        """What the provider allows in a day is known: its refusal would cost the account more than the wait."""
        seconds = round(self._supply.seconds_to_next_day())
        self._orders.halt("account-limit", timedelta(seconds=seconds))

    # ---- who sends it

    def _engage(self) -> None:
        """As many senders as the server takes and there is work for."""
        wanted = min(self._upstream.limit, self._supply.useful_senders)
        for _ in range(wanted - len(self._sending)):
            task = asyncio.create_task(self._send())
            self._sending.add(task)
            task.add_done_callback(self._sent)

    async def _send(self) -> None:
        """With one connection after the other, for as long as there is something for them."""
        session_id = self._batch.record.session_id
        while self._supply.may_begin:
            try:
                async with self._tools.smtp.lease(session_id, patience=None) as connection:
                    await self._sender.deliver(connection)
                await asyncio.sleep(0)  # the others' turn, should nothing in here have waited
            except (CredentialsStale, SessionNotFound):
                self._orders.halt("credentials-stale", None)
                return
            except Overloaded:  # we are shutting down, or the store has no room just now
                self._upstream.hold(self._now(), RECONNECT_SECONDS)
                return
            except CbemailError as error:
                log.info("%s waits: %s", self._batch.record.id, error.code)
                if isinstance(error, UpstreamError) and error.command == "AUTH":
                    self._upstream.throttled(self._now())  # logins are not to be hammered
                seconds = min(error.retry_after or RECONNECT_SECONDS, RECONNECT_SECONDS)
                self._upstream.hold(self._now(), seconds)
                return

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self._sending.discard(task)
        if self._is_blocked:
            self._is_blocked = False
            self._batch.expect(self._tools.clock())
        self._batch.nudged.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a sender of %s failed", self._batch.record.id, exc_info=error)
            self._upstream.hold(self._now(), DEFECT_SECONDS)
