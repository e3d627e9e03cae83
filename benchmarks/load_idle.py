"""Associations that are opened and then say nothing, all in one process of their own."""

import asyncio
import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

from benchmarks.receivers import Target
from benchmarks.session import LoadError, accepted, associate_request, tls_context
from ingest.dicom import wire

AT_A_TIME: Final = 8
"""Handshakes under way together: more would wait for the receiver's cores only."""

OPEN_SECONDS: Final = 300.0
ANSWER_SECONDS: Final = 60.0

Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def start_forked(process: BaseProcess) -> None:
    """Start a process that was made with the "fork" method.

    Python 3.12 and later warn of threads at a fork. The children here take no lock of another thread: they
    send and receive, and leave by `os._exit`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()


@contextlib.contextmanager
def idle_associations(target: Target, count: int, tls_version: str = "TLSv1.3") -> Iterator[None]:
    """Hold `count` idle associations while in the block; they are released at its end.

    Raises:
        LoadError: One of them could not be opened, or this process may not open as many files.
    """
    if not count:
        yield
        return
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_body, args=(target, count, tls_version, ours, theirs), daemon=True)
    start_forked(process)
    theirs.close()
    try:
        said = ours.recv() if ours.poll(OPEN_SECONDS) else "idle associations are not open in time"
        if said is not None:
            raise LoadError(said)
        yield
    except EOFError:
        raise LoadError("the process of the idle associations ended") from None
    finally:
        ours.close()
        process.join(ANSWER_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _body(target: Target, count: int, tls_version: str, theirs: Connection, pipe: Connection) -> None:
    """Run the helper process. It never returns."""
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _allow_files(count + 64)
        asyncio.run(_hold(target, count, tls_context(target, tls_version), pipe))
    except Exception as error:  # whatever it is, the caller is to hear it
        with contextlib.suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise LoadError(f"{count} files are needed and {hard} allowed; raise `ulimit -Hn`")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


async def _hold(target: Target, count: int, tls: ssl.SSLContext | None, pipe: Connection) -> None:
    turns = asyncio.Semaphore(AT_A_TIME)

    async def opened() -> Connected:
        async with turns, asyncio.timeout(ANSWER_SECONDS):
            return await _open(target, tls)

    async def released(connected: Connected) -> None:
        reader, writer = connected
        async with turns:
            # A receiver that has gone meanwhile is what the run itself will say.
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                writer.write(wire.RELEASE_RQ)
                async with asyncio.timeout(1.0):
                    await _pdu(reader)
            writer.transport.abort()

    connections = await asyncio.gather(*(opened() for _ in range(count)))
    pipe.send(None)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), over.set)  # readable when the caller closes it
    await over.wait()
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    await asyncio.gather(*(released(connected) for connected in connections))


async def _open(target: Target, tls: ssl.SSLContext | None) -> Connected:
    reader, writer = await asyncio.open_connection(
        target.host,
        target.port,
        ssl=tls,
        server_hostname=target.host if tls is not None else None,
        limit=4096,
    )
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.write(associate_request(target, 1))
    try:
        accepted(*await _pdu(reader), 1)
    except asyncio.IncompleteReadError:
        raise LoadError("the receiver closed the connection instead of associating") from None
    return reader, writer


async def _pdu(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    header = await reader.readexactly(6)
    return header[0], header + await reader.readexactly(int.from_bytes(header[2:], "big"))
