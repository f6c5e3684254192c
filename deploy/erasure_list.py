"""The list of destroyed keys beside the database: a backup that is restored brings keys back, this takes them again.

One JSON object a line, each under a keyed digest that covers the line before: nobody without the keyring can add a
key to it, or take one out of its middle. It holds ids of keys, and nothing of a patient.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import msgspec

from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import ServiceUnavailable

_PURPOSE: Final = "erasure_list.line"


@dataclass(frozen=True, slots=True)
class DestroyedKey:
    key: str
    erasure: str
    at: float


class _Line(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    key: str
    erasure: str
    at: float
    mac: str


class ErasureList:
    """Safe to use from several processes of one machine."""

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self.path = path
        self._keyring = keyring

    def read(self) -> list[DestroyedKey]:
        """Raise ServiceUnavailable for a list that was altered; a last line that was cut off is no line."""
        with self._locked() as descriptor:
            return [one for one, _ in self._lines(descriptor)]

    def add(self, keys: Iterable[DestroyedKey]) -> int:
        """Append those that are not on it; return how many that were."""
        with self._locked() as descriptor:
            lines = list(self._lines(descriptor))
            known = {one.key for one, _ in lines}
            before = lines[-1][1] if lines else ""
            new, text = [one for one in keys if one.key not in known], b""
            for one in new:
                before = self._mac(one, before)
                text += json.dumps({**asdict(one), "mac": before}).encode() + b"\n"
            if text:
                os.write(descriptor, text)
                os.fsync(descriptor)
            return len(new)

    def _lines(self, descriptor: int) -> Iterator[tuple[DestroyedKey, str]]:
        content = _all(descriptor)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(descriptor, whole)
        before = ""
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                read = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError as error:
                raise _altered(number) from error
            one = DestroyedKey(read.key, read.erasure, read.at)
            if read.mac != self._mac(one, before):
                raise _altered(number)
            before = read.mac
            yield one, before

    def _mac(self, one: DestroyedKey, before: str) -> str:
        return self._keyring.blind_index(json.dumps([one.key, one.erasure, one.at, before]), purpose=_PURPOSE)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise ServiceUnavailable(
                "the list of erasures cannot be opened", code="erasure_list_refused"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _all(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def _altered(number: int) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"line {number} of the list of erasures was altered, or is of another installation",
        code="erasure_list_refused",
    )
