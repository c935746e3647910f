"""The mailbox between an engine's thread and the event loop."""

from __future__ import annotations

import asyncio
import threading

from slipstream.wire.mailbox import Mailbox


async def test_everything_arrives_in_order_and_a_burst_wakes_the_loop_once() -> None:
    """From a thread that never rests nothing is lost or reordered; what fails stops nothing."""
    loop, got, woken = asyncio.get_running_loop(), [], []
    failures: list[dict] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    mailbox, wake = Mailbox(loop), loop.call_soon_threadsafe
    loop.call_soon_threadsafe = lambda *args: (woken.append(1), wake(*args))[1]  # type: ignore[method-assign]
    for i in range(100):
        mailbox.post(lambda i=i: got.append(i))
    assert len(woken) == 1
    mailbox.post(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    ended = asyncio.Event()

    def flood() -> None:
        for i in range(100, 20_000):
            mailbox.post(lambda i=i: got.append(i))
        mailbox.post(ended.set)

    thread = threading.Thread(target=flood)
    thread.start()
    async with asyncio.timeout(60):
        await ended.wait()
    thread.join()
    assert got == list(range(20_000))
    assert len(failures) == 1
