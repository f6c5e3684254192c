"""The parts of a multipart/related body, gathered as they come in, whoever sends them.

Spec: RFC 2046 section 5.1, RFC 2387 (multipart/related), DICOM PS3.18 8.6.1.2 (Multipart Payloads)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from rayhook.fhir.errors import InvalidRequest

_CONTENT_TYPE = re.compile(rb"content-type", re.IGNORECASE)
# RFC 2046 allows 70 characters, and Orthanc sends 73.
_BOUNDARY = re.compile(r"[\x20-\x7e]{0,199}[\x21-\x7e]")
_MAX_HEADER = 8 << 10


@dataclass(frozen=True, slots=True)
class Part:
    """One part. media_type: None where its head says none.  data: empty where it was longer than it may be."""

    media_type: str | None
    data: bytes = field(repr=False)
    is_too_long: bool = False


def media_type(text: str) -> tuple[str, Mapping[str, str]]:
    """Return a Content-Type's type in lower case, and its parameters."""
    message = Message()
    message["content-type"] = text.replace("\r", " ").replace("\n", " ")
    return message.get_content_type(), dict(message.get_params(failobj=[])[1:])


class PartCollector:
    """Gathers the parser's pieces into whole parts; of one longer than `max_part_bytes` nothing is kept.

    Raises InvalidRequest for what is no multipart body.
    """

    def __init__(self, boundary: str, *, max_part_bytes: int) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise InvalidRequest("the boundary has to have 1 to 200 characters", expression="Content-Type")
        self.ended = False
        self._max_part_bytes = max_part_bytes
        self._whole: list[Part] = []
        self._part = bytearray()
        self._is_too_long = False
        self._media_type: str | None = None
        self._name = bytearray()
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary.encode("latin-1"),
            {
                "on_end": self._on_end,
                "on_header_begin": self._on_header_begin,
                "on_header_end": self._on_header_end,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_part_begin": self._on_part_begin,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
            },
        )

    def write(self, chunk: bytes) -> list[Part]:
        """Return the parts that this piece of the body completes."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest("the multipart body is malformed", expression="body") from error
        whole, self._whole = self._whole, []
        return whole

    def _on_part_begin(self) -> None:
        self._part, self._is_too_long, self._media_type = bytearray(), False, None

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if len(self._part) + end - start > self._max_part_bytes:
            self._is_too_long, self._part = True, bytearray()
        if not self._is_too_long:
            self._part += memoryview(data)[start:end]

    def _on_part_end(self) -> None:
        self._whole.append(Part(self._media_type, bytes(self._part), self._is_too_long))
        self._part = bytearray()

    def _on_end(self) -> None:
        self.ended = True

    def _on_header_begin(self) -> None:
        self._name, self._value = bytearray(), bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += self._bounded(self._name, data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._bounded(self._value, data[start:end])

    def _on_header_end(self) -> None:
        if _CONTENT_TYPE.fullmatch(self._name):
            self._media_type, _ = media_type(self._value.decode("latin-1"))

    @staticmethod
    def _bounded(before: bytearray, more: bytes) -> bytes:
        if len(before) + len(more) > _MAX_HEADER:
            raise InvalidRequest("the head of a part is too long", expression="body")
        return more
