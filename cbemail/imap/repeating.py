"""Work for a session, at the second try where the first met a connection that was lost, or in no good state.

A connection at rest is told little: its server may have restarted, a message may have come that it has not heard of,
or its folder been deleted and made anew under it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

from cbemail.errors import MessageNotFound, UpstreamUnavailable
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FolderPath
from cbemail.imap.selecting import select
from cbemail.imap.wire import Command

T = TypeVar("T")

Start = Callable[[ImapConnection, AsyncExitStack], Awaitable[T]]


_NOOP = Command("NOOP")


async def repeatable(
    pool: ImapPool,
    session_id: SessionId,
    folder: FolderPath | None,
    work: Callable[[ImapConnection], Awaitable[T]],
    *,
    lazily: bool = False,
) -> T:
    """Run ``work`` on a connection that has ``folder`` selected; should it be lost, or not know of the message, once more
    on one that has just selected it.

    Only work that does the same when done twice belongs here: reading, or setting a flag.

    Args:
        lazily: the first thing ``work`` does is a read of `messages`, which may as well select the folder.
    """

    async def start(imap: ImapConnection, _: AsyncExitStack) -> T:
        return await work(imap)

    async with begin(pool, session_id, folder, start, lazily=lazily) as result:
        return result


def awake(pool: ImapPool, session_id: SessionId) -> AbstractAsyncContextManager[ImapConnection]:
    """Lend a connection that has just answered, for what must not be done twice and needs no folder selected."""

    async def start(imap: ImapConnection, _: AsyncExitStack) -> ImapConnection:
        await imap.run_one(_NOOP)
        return imap

    return begin(pool, session_id, None, start)


@asynccontextmanager
async def begin(
    pool: ImapPool,
    session_id: SessionId,
    folder: FolderPath | None,
    start: Start[T],
    *,
    anew: bool = False,
    lazily: bool = False,
) -> AsyncIterator[T]:
    """Lend a connection, and what ``start`` enters on the stack, for as long as the block runs; give ``start``'s result.

    What fails in ``start`` is tried again: also where a message was not found, which may have come so lately that a
    connection at rest was not told. What fails after it is not: something may have been done by then.

    Args:
        anew: select ``folder`` even where a connection has it selected. What changes messages needs that, so as not to
            meet those of another folder of that name; reading finds out afterwards (`messages`), a round trip less.
        lazily: ``start`` begins with a read of `messages`, which may as well select the folder: a round trip less.
    """
    for is_last in (False, True):
        async with AsyncExitStack() as stack:
            leased = False
            warm = None if anew or is_last else folder
            try:
                imap = await stack.enter_async_context(pool.lease(session_id, warm, lazily=lazily))
                leased = True
                if warm is None and folder is not None:
                    await select(imap, folder)
                begun = await start(imap, stack)
            except (UpstreamUnavailable, MessageNotFound) as error:
                was_told = warm is None and isinstance(error, MessageNotFound)
                if is_last or not leased or was_told:
                    raise
                continue
            yield begun
            return
