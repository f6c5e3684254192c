"""From a DICOM file's bytes to pixels, in child processes that a hostile file cannot outgrow or outlive.

The children are kept warm; one that dies or runs too long is replaced, and only its image is refused.
"""

import hashlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import numpy as np
import structlog

from rayhook.fhir.errors import ImageRefused, ServiceUnavailable
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.decode_wire import (
    READY,
    Decoded,
    Reply,
    Request,
    map_shared,
    receive_reply,
    send,
    share,
)
from rayhook.inference.study import DecodedInstance, StoredInstance

__all__ = ["DecodeLimits", "Decoder"]

_Image = TypeVar("_Image")
_Answer = tuple[Reply, int | None]

_DTYPES = frozenset(("float32", "int16", "int32", "int8", "uint16", "uint32", "uint8"))
_COLOUR = 3
_START_TIMEOUT_S = 30.0
_DECODES_PER_CHILD = 5_000
_INHERITED = (
    "LANG",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "SYSTEMROOT",
    "TZ",
    "VIRTUAL_ENV",
)
_ONE_THREAD = {
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}

log = structlog.get_logger()


class Decoder:
    """A pool of limited child processes. Safe to share between threads."""

    def __init__(self, *, children: int = 1) -> None:
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        self._children = children
        for _ in range(children):
            self._idle.put(_Child())

    def decode(self, data: bytes, *, limits: DecodeLimits | None = None) -> DecodedInstance:
        """Return the pixels of one DICOM file.

        Raises ImageRefused with a stable code, and the DICOM keyword at fault as `expression`.
        """
        return self._with_child(data, limits or DecodeLimits(), _Child.decode)

    def decode_stored(self, data: bytes, *, limits: DecodeLimits | None = None) -> StoredInstance:
        """Return the values of one DICOM file as acquired. Raises ImageRefused as `decode` does."""
        return self._with_child(data, limits or DecodeLimits(), _Child.decode_stored)

    def _with_child(
        self, data: bytes, limits: DecodeLimits, decode: Callable[["_Child", bytes, DecodeLimits], _Image]
    ) -> _Image:
        if len(data) > limits.max_file_bytes:
            raise ImageRefused(
                f"the file is larger than max_file_bytes ({limits.max_file_bytes})", code="image_too_large"
            )
        if not data:
            raise ImageRefused("the file is empty", code="not_dicom")
        child = self._idle.get()
        try:
            if child is None:
                raise ServiceUnavailable("the decoder is closed", code="decoder_closed")
            return decode(child, data, limits)
        finally:
            self._idle.put(child if child is None or child.usable else _Child())

    def close(self) -> None:
        """End the children, waiting for those at work; who comes later is told ServiceUnavailable."""
        for _ in range(self._children):
            child = self._idle.get()
            if child is None:
                break
            child.end()
        self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Child:
    """One process, and the socket to it. Not usable any more after it has died or overrun its time."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready = False
        self._decodes = 0
        self.usable = True
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
                [sys.executable, "-P", "-m", "rayhook.inference.decode_child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the parent, which lets the image at work be finished
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _INHERITED if name in os.environ} | _ONE_THREAD,
            )

    def decode(self, data: bytes, limits: DecodeLimits) -> DecodedInstance:
        return self._ask(data, Request(limits), _decoded)

    def decode_stored(self, data: bytes, limits: DecodeLimits) -> StoredInstance:
        return self._ask(data, Request(limits, stored=True), _stored)

    def _ask(
        self, data: bytes, request: Request, read: Callable[[bytes, Callable[[], _Answer]], _Image]
    ) -> _Image:
        limits = request.limits
        try:
            self._await_ready()
            deadline = time.monotonic() + limits.timeout_s
            self._send(data, request)

            def receive() -> _Answer:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                return receive_reply(self._socket)

            image = read(data, receive)
        except TimeoutError as error:
            self.end()
            raise ImageRefused("decoding took too long", code="decoder_timeout") from error
        except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:
            raise self._obituary() from error
        self._decodes += 1
        if self._decodes >= _DECODES_PER_CHILD:
            self.end()
        return image

    def _await_ready(self) -> None:
        if self._ready:
            return
        self._socket.settimeout(_START_TIMEOUT_S)
        if self._socket.recv(len(READY)) != READY:
            raise EOFError
        self._ready = True

    def _send(self, data: bytes, request: Request) -> None:
        descriptor = share([data])
        try:
            self._socket.settimeout(request.limits.timeout_s)
            send(self._socket, request, descriptor)
        finally:
            os.close(descriptor)

    def _obituary(self) -> ImageRefused:
        """End the child and say why it could not answer."""
        status = self.end()
        log.warning("decoder_child_lost", status=status)
        if status == -signal.SIGXCPU:
            return ImageRefused("decoding took too much processor time", code="decoder_timeout")
        return ImageRefused("the decoder could not read the image", code="decoder_failed")

    def end(self) -> int:
        """Return the exit status, negative for a signal."""
        self.usable = False
        self._socket.close()
        try:
            return self._process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _decoded(data: bytes, receive: Callable[[], _Answer]) -> DecodedInstance:
    # The digest costs as much as half a decode: it is made while the child works.
    digest = hashlib.sha256(data).hexdigest()
    reply, mapped = _opened(*receive())
    if reply.decoded is None:
        raise ValueError("the reply is neither a refusal nor an image")
    return _with_pixels(reply.decoded, mapped, digest)


def _stored(_data: bytes, receive: Callable[[], _Answer]) -> StoredInstance:
    reply, mapped = _opened(*receive())
    if reply.stored is None:
        raise ValueError("the reply is neither a refusal nor an image")
    attributes, description = reply.stored.attributes, reply.stored.description
    if description.dtype not in _DTYPES or description.samples not in (1, _COLOUR):
        raise ValueError("the reply is of no type that was agreed")
    if len(description.scales) != attributes.number_of_frames:
        raise ValueError("the reply does not have one scale a frame")
    samples = () if description.samples == 1 else (description.samples,)
    shape = (attributes.number_of_frames, attributes.rows, attributes.columns, *samples)
    count = int(np.prod(shape, dtype=np.int64))
    dtype = np.dtype(description.dtype).newbyteorder("<")
    pixels = np.frombuffer(mapped, dtype, count)  # type: ignore[call-overload]
    return StoredInstance(attributes, description, pixels.reshape(shape))


def _opened(reply: Reply, descriptor: int | None) -> tuple[Reply, object]:
    """Raise ImageRefused as the child says, ValueError if what it says does not fit together."""
    mapped = None if descriptor is None else map_shared(descriptor)
    if reply.refused is not None:
        raise ImageRefused(
            reply.refused.message, code=reply.refused.code, expression=reply.refused.expression
        )
    if mapped is None:
        raise ValueError("the reply is neither a refusal nor an image")
    return reply, mapped


def _with_pixels(decoded: Decoded, mapped: object, digest: str) -> DecodedInstance:
    attributes = decoded.attributes
    shape = (attributes.number_of_frames, attributes.rows, attributes.columns)
    count = int(np.prod(shape, dtype=np.int64))
    pixels = np.frombuffer(mapped, np.float32, count)  # type: ignore[call-overload]
    display = np.frombuffer(mapped, np.uint8, count, offset=pixels.nbytes)  # type: ignore[call-overload]
    return DecodedInstance(
        attributes=attributes,
        pixels=pixels.reshape(shape),
        display=display.reshape(shape),
        sha256=digest,
        warnings=decoded.warnings,
        source_header=decoded.source_header,
    )
