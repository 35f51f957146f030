"""The guard that fails other tests must itself be seen to fail."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.leaks import nothing_left_behind


async def test_a_task_left_running_is_noticed() -> None:
    with pytest.raises(AssertionError, match="tasks left running"):
        async with nothing_left_behind(patience=0.01):
            forgotten = asyncio.create_task(asyncio.Event().wait())

    forgotten.cancel()


async def test_a_socket_left_open_is_noticed() -> None:
    near, far = socket.socketpair()

    with pytest.raises(AssertionError, match="sockets left open"):
        async with nothing_left_behind(patience=0.01):
            _, writer = await asyncio.open_connection(sock=near)

    writer.close()
    far.close()


async def test_a_socket_whose_other_side_is_gone_is_still_open() -> None:
    near, far = socket.socketpair()
    writers = []

    async def connect_and_be_left() -> None:
        async with nothing_left_behind(patience=0.01):
            reader, writer = await asyncio.open_connection(sock=near)
            writers.append(writer)
            far.close()
            await reader.read()

    with pytest.raises(AssertionError, match="sockets left open"):
        await connect_and_be_left()

    writers[0].close()


async def test_what_is_only_just_closing_is_no_leak() -> None:
    near, far = socket.socketpair()

    async with nothing_left_behind():
        _, writer = await asyncio.open_connection(sock=near)
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        writer.close()

    far.close()
    assert task.cancelled()
