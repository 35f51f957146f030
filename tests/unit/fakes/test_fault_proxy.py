"""The fault proxy between a raw client and an echo server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes.fault_proxy import CUT, HALF_CLOSE, RESET, STALL, FaultProxy
from tests.fakes.listener import Listener


class Echo(Listener):
    """Says what it hears; at the end of it says `end`."""

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while octets := await reader.read(65536):
            writer.write(octets)
        writer.write(b"end")
        await writer.drain()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with Echo() as echo, FaultProxy(echo.host, echo.port) as proxy:
        yield proxy


Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def line(proxy: FaultProxy) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    yield reader, writer
    writer.close()


async def test_octets_pass_unchanged_and_are_counted(proxy: FaultProxy, line: Line) -> None:
    reader, writer = line
    octets = bytes(range(256)) * 4096

    writer.write(octets)
    echoed = await reader.readexactly(len(octets))

    assert echoed == octets
    assert (proxy.up.octets, proxy.down.octets) == (len(octets), len(octets))
    assert proxy.connections == 1


async def test_the_end_of_one_direction_leaves_the_other_open(line: Line) -> None:
    reader, writer = line

    writer.write(b"abc")
    writer.write_eof()

    assert await reader.read() == b"abcend"


async def test_a_cut_ends_the_connection_at_its_octet(proxy: FaultProxy, line: Line) -> None:
    reader, writer = line
    proxy.down.fail(CUT, after=2)

    writer.write(b"abc")

    assert await reader.read() == b"ab"


async def test_a_reset_is_no_orderly_end(proxy: FaultProxy, line: Line) -> None:
    reader, writer = line
    proxy.down.fail(RESET, after=2)

    writer.write(b"abc")

    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_a_fault_happens_once(proxy: FaultProxy, line: Line) -> None:
    proxy.down.fail(CUT)
    line[1].write(b"abc")
    await line[0].read()

    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"abc")

    assert await reader.readexactly(3) == b"abc"
    writer.close()


async def test_a_stall_keeps_octets_back_and_the_connection_open(
    proxy: FaultProxy, line: Line
) -> None:
    reader, writer = line
    proxy.down.fail(STALL, after=1)

    writer.write(b"abc")
    first = await reader.readexactly(1)
    rest = asyncio.ensure_future(reader.read())
    done, _ = await asyncio.wait([rest], timeout=0.05)

    assert (first, done) == (b"a", set())
    assert proxy.up.octets == 3
    rest.cancel()


async def test_a_half_close_ends_one_direction_only(proxy: FaultProxy, line: Line) -> None:
    reader, writer = line
    proxy.down.fail(HALF_CLOSE, after=1)

    writer.write(b"abc")
    heard = await reader.read()
    writer.write(b"def")
    proxy.up.fail(CUT, after=3)
    writer.write(b"g")

    assert heard == b"a"
    assert await reader.read() == b""


async def test_trickled_octets_arrive_one_by_one(proxy: FaultProxy, line: Line) -> None:
    reader, writer = line
    proxy.down.trickle = True

    writer.write(b"abc")
    segments: list[bytes] = []
    while b"".join(segments) != b"abc":
        segments.append(await reader.read(100))

    assert segments == [b"a", b"b", b"c"]


async def test_latency_holds_octets_back_for_that_long(proxy: FaultProxy, line: Line) -> None:
    reader, writer = line
    proxy.down.latency = 0.02
    now = asyncio.get_running_loop().time
    started = now()

    writer.write(b"abc")
    await reader.readexactly(3)

    assert now() - started >= 0.02


async def test_hanging_up_breaks_every_connection(proxy: FaultProxy, line: Line) -> None:
    reader, writer = line
    writer.write(b"abc")
    await reader.readexactly(3)

    proxy.hang_up()

    assert await reader.read() == b""
