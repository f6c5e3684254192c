"""The decoder's child process: takes a file's bytes, answers with pixels or a refusal, and is confined.

Started by rayhook.inference.decode as `python -m rayhook.inference.decode_child <socket>`.
"""

import mmap
import os
import resource
import socket
import sys
import warnings

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.confinement import confine
from rayhook.inference.decode_image import decode_image
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.decode_wire import (
    READY,
    Decoded,
    Refused,
    Reply,
    Request,
    Stored,
    receive_request,
    send,
    share,
)
from rayhook.inference.pixel_description import PixelDescription
from rayhook.inference.stored_image import read_stored_image

# What libraries are known to raise on hostile files; anything else ends the child, and refuses the image too.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_HEADER_BYTES = 256 << 20
_BYTES_PER_SAMPLE = 24
_HEADER_CPU_S = 4
_BYTES_PER_CPU_S = 4 << 20


class Allowance:
    """How much memory and processor time the process may use, raised from image to image."""

    def __init__(self) -> None:
        self._base = _address_space()

    def for_header(self, data: bytes, limits: DecodeLimits) -> None:
        self._set(_HEADER_BYTES + 4 * len(data), _HEADER_CPU_S, limits)

    def for_pixels(self, data: bytes, description: PixelDescription, limits: DecodeLimits) -> None:
        samples = description.pixels * description.samples * description.frames
        size = samples * -(-description.bits_allocated // 8)
        memory = _HEADER_BYTES + 4 * len(data) + _BYTES_PER_SAMPLE * samples
        self._set(memory, _HEADER_CPU_S + size // _BYTES_PER_CPU_S, limits)

    def _set(self, memory: int, cpu_s: int, limits: DecodeLimits) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(used.ru_utime + used.ru_stime) + 1
        _limit(resource.RLIMIT_AS, self._base + min(memory, limits.max_memory_bytes))
        _limit(resource.RLIMIT_CPU, spent + cpu_s)


def serve(connection: socket.socket) -> None:
    """Answer requests until the parent has gone."""
    allowance = Allowance()
    connection.sendall(READY)
    while (received := receive_request(connection)) is not None:
        request, descriptor = received
        _answer(connection, request, descriptor, allowance)


def _answer(connection: socket.socket, request: Request, descriptor: int, allowance: Allowance) -> None:
    try:
        reply, pixels = _reply(request, _read(descriptor), allowance)
    except ImageRefused as error:
        refused = Refused(error.code, error.message, error.expression)
        send(connection, Reply(refused=refused))
        return
    except MemoryError:
        refused = Refused("decoder_failed", "the image needs more memory than it announces", "PixelData")
        send(connection, Reply(refused=refused))
        return
    except _DECODER_ERRORS:
        send(connection, Reply(refused=Refused("decoder_failed", "the image cannot be read", "PixelData")))
        return
    send(connection, reply, pixels)
    os.close(pixels)


def _read(descriptor: int) -> bytes:
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as shared:
            return shared[:]
    finally:
        os.close(descriptor)


def _reply(request: Request, data: bytes, allowance: Allowance) -> tuple[Reply, int]:
    """Return the answer, and the descriptor of the pixels that go with it."""
    limits = request.limits
    allowance.for_header(data, limits)

    def allow(description: PixelDescription) -> None:
        allowance.for_pixels(data, description, limits)

    if request.stored:
        stored = read_stored_image(data, limits, allow=allow)
        return Reply(stored=Stored(stored.attributes, stored.description)), share([stored.pixels])
    image = decode_image(data, limits, allow=allow)
    decoded = Decoded(image.attributes, image.warnings, image.source_header)
    return Reply(decoded=decoded), share([image.pixels, image.display])


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 (once, before the limits)
        return int(statm.read().split()[0]) * resource.getpagesize()


def _limit(kind: int, soft: int) -> None:
    resource.setrlimit(kind, (soft, resource.RLIM_INFINITY))


def main() -> None:
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=int(sys.argv[1]))
    confine()
    serve(connection)


if __name__ == "__main__":
    main()
