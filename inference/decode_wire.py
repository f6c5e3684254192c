"""What the decoder and its child say to each other: short typed messages, pixels in sealed shared memory.

The parent never unpickles and never trusts a length: a child that a hostile file has taken over can at
worst make it refuse an image.
"""

import fcntl
import mmap
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from numpy.typing import NDArray

from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.study import InstanceAttributes, StoredDescription

READY = b"ready"
_MAX_MESSAGE = 128 << 10
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class Request:
    """The file's bytes travel beside it as sealed memory. stored: ask for the values as acquired."""

    limits: DecodeLimits
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Decoded:
    """The pixels travel beside it: float32 of (frames, rows, columns), then uint8 of the same shape."""

    attributes: InstanceAttributes
    warnings: tuple[str, ...]
    source_header: bytes = b""


@dataclass(frozen=True, slots=True)
class Stored:
    """The values travel beside it, of `description.dtype`: (frames, rows, columns), samples last."""

    attributes: InstanceAttributes
    description: StoredDescription


@dataclass(frozen=True, slots=True)
class Refused:
    code: str
    message: str
    expression: str | None


class Reply(msgspec.Struct, frozen=True):
    """One of the three."""

    decoded: Decoded | None = None
    stored: Stored | None = None
    refused: Refused | None = None


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)


def send(connection: socket.socket, message: Request | Reply, descriptor: int | None = None) -> None:
    """Send one message and, with it, the right to one shared memory."""
    descriptors = [] if descriptor is None else [descriptor]
    socket.send_fds(connection, [_encoder.encode(message)], descriptors)


def receive_request(connection: socket.socket) -> tuple[Request, int] | None:
    """Return the next request and its descriptor, None when the parent has gone."""
    message, descriptors = _receive(connection)
    if not message:
        return None
    return _requests.decode(message), descriptors[0]


def receive_reply(connection: socket.socket) -> tuple[Reply, int | None]:
    """Raise EOFError when the child has gone, TimeoutError, or msgspec.MsgspecError on a malformed reply."""
    message, descriptors = _receive(connection)
    if not message:
        raise EOFError
    try:
        return _replies.decode(message), descriptors[0] if descriptors else None
    except msgspec.MsgspecError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def share(buffers: Sequence[bytes | NDArray[Any]]) -> int:
    """Return a descriptor of memory that holds the buffers one after the other and can never change again."""
    descriptor = os.memfd_create("rayhook-decode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for buffer in buffers:
            _write_all(descriptor, memoryview(buffer).cast("B"))  # type: ignore[arg-type]  # arrays are buffers
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def map_shared(descriptor: int) -> mmap.mmap:
    """Map sealed memory, privately: writing to it changes nobody else's copy. Closes the descriptor.

    Raises ValueError if it could still change under the reader, or is empty.
    """
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("shared memory is not sealed")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    message, descriptors, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, 1)
    return message, descriptors


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]
