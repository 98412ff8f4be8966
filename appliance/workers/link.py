"""A running worker process and the service's end of its socket pair, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Sequence

import msgspec

from appliance.workers.protocol import (
    HEADER_BYTES,
    FrameBuffer,
    FrameTooLargeError,
    FromWorker,
    ToWorker,
    encode_frame,
)

_RECEIVE_BYTES = 1 << 16
_MAX_LOG_LINE = 2000
# A worker hangs up by itself when its socket closes; this long is it waited for.
_EXIT_SECONDS = 2.0
# The rest of its log has this long to arrive.
_LOG_SECONDS = 1.0


class Link:
    """One worker process: messages both ways, its log, its end."""

    def __init__(self, kind: str, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self._process = process
        self._socket = sock
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._buffer = FrameBuffer()
        self._sending = asyncio.Lock()
        self._log = asyncio.create_task(self._forward_log(kind), name=f"log of worker {kind}")
        self._ended = False
        self._end = asyncio.create_task(self._watch_end(), name=f"end of worker {kind}")

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    async def send(self, message: ToWorker, fds: Sequence[int] = ()) -> None:
        """Send ``message`` and duplicates of ``fds``. Raises OSError when the worker is gone."""
        frame = encode_frame(message)
        loop = asyncio.get_running_loop()
        async with self._sending:
            if fds:
                await self._send_fds(frame[:HEADER_BYTES], fds)
                frame = frame[HEADER_BYTES:]
            await loop.sock_sendall(self._socket, frame)

    async def _send_fds(self, header: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sent = socket.send_fds(self._socket, [header], fds)
            except BlockingIOError:
                writable = loop.create_future()
                loop.add_writer(self._socket, _resolve, writable)
                try:
                    await writable
                finally:
                    loop.remove_writer(self._socket)
                continue
            await loop.sock_sendall(self._socket, header[sent:])
            return

    async def receive(self) -> FromWorker | None:
        """Return the next message, or None when the worker hung up or says what cannot be understood."""
        loop = asyncio.get_running_loop()
        try:
            while (body := self._buffer.next()) is None:
                data = await loop.sock_recv(self._socket, _RECEIVE_BYTES)
                if not data:
                    return None
                self._buffer.feed(data)
            message: FromWorker = self._decoder.decode(body)
        # A ValueError is text that is no UTF-8, a RecursionError what is nested too deeply.
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError, FrameTooLargeError):
            return None
        return message

    def kill(self) -> None:
        """End the process and whatever it may have started, and hang up; what it said can still be read."""
        # Once it has ended and its group was killed, the number may be somebody else's.
        if not self._ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._hang_up()

    def _hang_up(self) -> None:
        # Wakes whoever receives or sends, also when another process holds the other end.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def _watch_end(self) -> None:
        await self._process.wait()
        self.kill()
        self._ended = True

    async def close(self) -> int | None:
        """Hang up, wait for the process's end, by force if need be, and return its exit status.

        Takes a few seconds at most; None when not even the kernel could end the process.
        """
        self._hang_up()
        await asyncio.wait({self._end}, timeout=_EXIT_SECONDS)
        if not self._end.done():
            self.kill()
            await asyncio.wait({self._end}, timeout=_EXIT_SECONDS)
        # Who was sending has noticed by now; a socket is not closed under the loop's feet.
        async with self._sending:
            self._socket.close()
        await asyncio.wait({self._log}, timeout=_LOG_SECONDS)
        for task in (self._end, self._log):
            task.cancel()
        await asyncio.wait({self._end, self._log})
        return self._process.returncode

    async def _forward_log(self, kind: str) -> None:
        """Put the worker's standard error into our log, line by line."""
        logger = logging.getLogger(f"appliance.workers.{kind}")
        stream = self._process.stderr
        if stream is None:
            return
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the stream's buffer; the rest of it follows
                continue
            if not line:
                return
            logger.info("%s", _printable(line[:_MAX_LOG_LINE].decode("utf-8", "replace").rstrip()))


def _printable(text: str) -> str:
    """Return ``text`` with what a terminal would obey, such as escape sequences, spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def spawn(command: Sequence[str], kind: str, environment: dict[str, str]) -> Link:
    """Start a worker of ``kind``. Raises OSError when the program cannot be run."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *command,
            "worker",
            kind,
            "--fd",
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            pass_fds=(theirs.fileno(),),
            # Ctrl-C in the service's terminal is the service's business.
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Link(kind, process, ours)
