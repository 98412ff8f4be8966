"""The worker's side: confine, open the kind, then run one job after another until the service hangs up."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from appliance.errors import ApplianceError
from appliance.workers.errors import SandboxError, WorkerTimeoutError
from appliance.workers.protocol import (
    MAX_FDS,
    Call,
    Cancel,
    Event,
    Failure,
    FrameBuffer,
    FrameTooLargeError,
    FromWorker,
    Result,
    Start,
    Started,
    ToWorker,
    encode_frame,
    encode_raw,
)
from appliance.workers.sandbox import confine, die_with_parent

logger = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16
_OUT_OF_MEMORY = "the job needs more memory than a worker may use"


class JobCancelledError(Exception):
    """Raised out of ``Job.check``: the caller does not want the result any more."""


class Channel:
    """The worker's end of the socket pair. One thread receives; any may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._buffer = FrameBuffer()
        self._fds: deque[int] = deque()
        self._sending = threading.Lock()

    def receive(self) -> tuple[ToWorker, list[int]] | None:
        """Return the next message and its descriptors, or None when the service hung up."""
        while (body := self._buffer.next()) is None:
            flags = socket.MSG_CMSG_CLOEXEC
            data, fds, _, _ = socket.recv_fds(self._socket, _RECEIVE_BYTES, MAX_FDS, flags)
            if not data:
                return None
            self._buffer.feed(data)
            self._fds.extend(fds)
        message = self._decoder.decode(body)
        count = message.fds if isinstance(message, Call) else 0
        return message, [self._fds.popleft() for _ in range(count)]

    def send(self, message: FromWorker) -> None:
        """Send ``message`` whole. Raises FrameTooLargeError before anything was sent."""
        self.send_frame(encode_frame(message))

    def send_frame(self, frame: bytes) -> None:
        """Send an encoded message whole."""
        with self._sending:
            self._socket.sendall(frame)


class Job:
    """A job as the kind's handler sees it. ``fds`` are closed when the handler returns."""

    def __init__(self, call: Call, fds: list[int], channel: Channel) -> None:
        self.fds = fds
        self._id = call.id
        self._channel = channel
        self._cancelled = threading.Event()
        self._ends = time.monotonic() + call.deadline_seconds
        self.arguments = call.arguments

    @property
    def id(self) -> int:
        """The id the service gave it."""
        return self._id

    def cancel(self) -> None:
        """Make the next ``check`` raise."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise JobCancelledError when cancelled, WorkerTimeoutError past the deadline. Call it often."""
        if self._cancelled.is_set():
            raise JobCancelledError
        if time.monotonic() > self._ends:
            raise WorkerTimeoutError("the job took longer than it may")

    def emit(self, data: object) -> None:
        """Send something to the caller before the result."""
        self._channel.send(Event(id=self._id, data=encode_raw(data)))


Handler = Callable[[Job], object]
OpenKind = Callable[[msgspec.Raw], Handler]


class _Desk:
    """The jobs that came in: the receiving thread puts them, the main thread takes them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._known: dict[int, Job] = {}

    def receive_forever(self) -> NoReturn:
        """Take messages until the service hangs up, then end the process at once.

        Whatever the main thread is in the middle of has nobody left to do it for.
        """
        try:
            while (received := self._channel.receive()) is not None:
                self._take(*received)
        except BaseException:
            logger.exception("the worker cannot understand the service")
            os._exit(1)
        os._exit(0)

    def _take(self, message: ToWorker, fds: list[int]) -> None:
        match message:
            case Call():
                job = Job(message, fds, self._channel)
                with self._lock:
                    self._known[job.id] = job
                self._waiting.put(job)
            case Cancel():
                with self._lock:
                    known = self._known.get(message.id)
                if known is not None:
                    known.cancel()
            case Start():
                raise RuntimeError("a worker is started once")

    def next(self) -> Job:
        return self._waiting.get()

    def done(self, job: Job) -> None:
        with self._lock:
            del self._known[job.id]
        for fd in job.fds:
            with contextlib.suppress(OSError):  # the handler may have closed it
                os.close(fd)


def run(fd: int, open_kind: OpenKind) -> None:
    """Serve the socket pair end ``fd``; never returns while the service lives.

    ``open_kind`` gets the start message's arguments and returns the handler; it runs confined already.
    Exits the process: 0 when the service hung up, 1 when the worker could not start.
    """
    # The log goes to the service through standard error.
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    channel = Channel(socket.socket(fileno=fd))
    try:
        die_with_parent()
        start = _first_message(channel)
        if start is None:
            return
        confine(start.limits)
        handler = open_kind(start.arguments)
    except (ApplianceError, SandboxError) as error:
        logger.error("the worker cannot start: %s", error)  # noqa: TRY400 - the text says it all
        channel.send(_failure(0, error))
        sys.exit(1)
    except Exception as error:
        logger.exception("the worker cannot start")
        channel.send(_failure(0, error))
        sys.exit(1)
    desk = _Desk(channel)
    threading.Thread(target=desk.receive_forever, name="receive", daemon=True).start()
    channel.send(Started())
    while True:
        job = desk.next()
        answer = _perform(job, handler)
        desk.done(job)
        channel.send_frame(answer)


def _first_message(channel: Channel) -> Start | None:
    received = channel.receive()
    if received is None:
        return None
    if not isinstance(received[0], Start):
        raise TypeError("the first message starts the worker")
    return received[0]


def _perform(job: Job, handler: Handler) -> bytes:
    """Do ``job`` and return the frame of its answer: what cannot be sent fails the job, not the worker."""
    try:
        return encode_frame(_answer(job, handler))
    except FrameTooLargeError as error:
        logger.error("the result of job %d cannot be sent: %s", job.id, error)  # noqa: TRY400 - all is said
        return encode_frame(Failure(id=job.id, message="the job's result is too large"))
    except MemoryError:
        return encode_frame(Failure(id=job.id, message=_OUT_OF_MEMORY, status=400))


def _answer(job: Job, handler: Handler) -> FromWorker:
    try:
        job.check()
        return Result(id=job.id, data=encode_raw(handler(job)))
    except JobCancelledError:
        return Failure(id=job.id, message="cancelled", status=499)
    except ApplianceError as error:
        return _failure(job.id, error)
    except MemoryError:
        return Failure(id=job.id, message=_OUT_OF_MEMORY, status=400)
    except Exception as error:
        logger.exception("job %d failed", job.id)
        return _failure(job.id, error)


def _failure(number: int, error: Exception) -> Failure:
    if not isinstance(error, ApplianceError):
        # Its text may hold anything; the log has it.
        message = str(error) if isinstance(error, SandboxError) else "the worker failed; its log says why"
        return Failure(id=number, message=message)
    fields: dict[str, Any] = {name: getattr(error, name) for name in ("status", "type", "code", "param")}
    return Failure(id=number, message=error.message, **fields)
