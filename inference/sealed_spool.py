"""Files on their way: encrypted as they are written, bound to their name, bounded in size, gone when they are old.

Spec: 45 CFR 164.312(a)(2)(iv); OWASP ASVS 5.0.0 V14.2.7.
"""

import contextlib
import errno
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, Self

import structlog
import tink
from tink import secret_key_access, streaming_aead

from rayhook.auth.encryption import ColumnCipher, new_encryption_keyset
from rayhook.fhir.errors import InvalidRequest, NotFound, RayhookError, ServiceUnavailable

_MAGIC: Final = b"RHSPOOL1"
_LENGTH_BYTES: Final = 2
_CHUNK: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_DRAFT: Final = ".draft-"
# Nobody writes to a draft that has not grown for so long: its writer was killed.
_DRAFT_LIFE_S: Final = 60.0
_COUNT_LIFE_S: Final = 5.0  # other processes write to the folder too
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

log = structlog.get_logger()


class Sealer(Protocol):
    """What a file's own key is sealed under: a Keyring, or a ColumnCipher that one process alone has."""

    def seal(self, plaintext: bytes, *, table: str, column: str, row: str) -> bytes: ...

    def open(self, ciphertext: bytes, *, table: str, column: str, row: str) -> bytes: ...


class SealedSpool:
    """A folder of encrypted files, each under a key of its own that is sealed in its head.

    Any process that has the folder and the sealer's key can read them. Names are the caller's ids: they are not
    encrypted, and must tell nothing. A file is there whole, and on the disk, or not at all.
    """

    def __init__(
        self, folder: Path, sealer: Sealer, limit_bytes: int, *, clock: Callable[[], float] = time.time
    ) -> None:
        streaming_aead.register()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._sealer = sealer
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._counted_bytes, self._counted_at = 0, -math.inf

    @classmethod
    def ephemeral(cls, folder: Path, limit_bytes: int) -> Self:
        """Return a spool whose files nobody can read after this process: its key is in memory only."""
        return cls(folder, ColumnCipher(new_encryption_keyset()), limit_bytes)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Store the file under `name`, in the place of one that is there.

        Raises ServiceUnavailable with code `spool_full` where the spool or the disk has no room for it.
        """
        path = self._path(name)
        draft = self._folder / f"{_DRAFT}{secrets.token_hex(8)}"
        try:
            self._write_draft(draft, name, chunks)
            draft.replace(path)
            _synchronise(self._folder)
        except OSError as error:
            raise _unwritable(error) from error
        finally:
            draft.unlink(missing_ok=True)

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the file's bytes.

        Raises NotFound, and RayhookError with code `decryption_failed` for a file that was altered, cut short,
        or has another's name; what was yielded before that must not be used.
        """
        try:
            file = self._path(name).open("rb")
        except FileNotFoundError:
            raise NotFound("there is no such file in the spool", code="spool_file_not_found") from None
        with file:
            yield from _opened(file, name, self._sealer)

    def load(self, name: str) -> bytes:
        """Return the whole file; errors as of `read`."""
        return b"".join(self.read(name))

    def remove(self, name: str) -> None:
        """Forget the file; one that is not there is forgotten already."""
        self._path(name).unlink(missing_ok=True)

    def refresh(self, names: Iterable[str]) -> None:
        """Let the files count as written now."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._path(name))

    def names(self, *, older_than_s: float = 0.0) -> list[str]:
        """Return the files that are that old, the oldest first."""
        latest = self._clock() - older_than_s if older_than_s else float("inf")
        found = [(modified, path.name) for path, _, modified in self._files() if not _is_draft(path)]
        return [name for modified, name in sorted(found) if modified <= latest]

    def used_bytes(self) -> int:
        return sum(size for _, size, _ in self._files())

    def sweep(self, older_than_s: float) -> int:
        """Remove what is older, and drafts that a killed writer left; return how many files that were."""
        now, removed = self._clock(), 0
        for path, _, modified in self._files():
            life_s = min(older_than_s, _DRAFT_LIFE_S) if _is_draft(path) else older_than_s
            if now - modified >= life_s:
                path.unlink(missing_ok=True)
                removed += 1
        if removed:
            log.info("spool_swept", folder=self._folder.name, files=removed)
        return removed

    def _write_draft(self, draft: Path, name: str, chunks: Iterable[bytes]) -> None:
        file = _DraftFile(draft, self._room())
        try:
            handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
            serialized = tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
            sealed = self._sealer.seal(serialized, table="spool", column="key", row=name)
            file.write(_MAGIC + len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed)
            primitive: Any = handle.primitive(streaming_aead.StreamingAead)
            with primitive.new_encrypting_stream(file, _place(name)) as stream:
                for chunk in chunks:
                    stream.write(chunk)
        except tink.TinkError as error:
            raise file.failure or error from error
        finally:
            file.close()
        if file.failure is not None:
            raise file.failure
        with self._lock:
            self._counted_bytes += file.size

    def _room(self) -> int:
        """Return how many bytes may be written. Far from the limit the folder is not counted for every file."""
        now = time.monotonic()
        with self._lock:
            if self._counted_bytes >= self._limit_bytes // 2 or now - self._counted_at >= _COUNT_LIFE_S:
                self._counted_bytes, self._counted_at = self.used_bytes(), now
            return self._limit_bytes - self._counted_bytes

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        for path in self._folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another process has just removed it
                continue
            yield path, status.st_size, status.st_mtime

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise InvalidRequest("a spool's file has a name of letters, digits, dots, - and _")
        return self._folder / name


def sealed_keys(folder: Path) -> Iterator[bytes]:
    """Yield each file's own key as it is sealed in its head: the sealer's keys that are still needed."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            with path.open("rb") as file:
                sealed = _sealed_key(file)
        except FileNotFoundError:  # its reader has just removed it
            continue
        if sealed is not None:
            yield sealed


class _DraftFile:
    """What Tink writes to: remembers why a write failed, which Tink does not tell, and ends on the disk."""

    def __init__(self, path: Path, room: int) -> None:
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._room = room
        self.size = 0
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            self._take(len(content))
            return self._file.write(content)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def _take(self, size: int) -> None:
        if size > self._room:
            raise OSError(errno.EDQUOT, "the spool is full")
        self._room -= size
        self.size += size

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.failure = self.failure or error
        finally:
            try:
                self._file.close()
            except OSError as error:
                self.failure = self.failure or error

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _opened(file: Any, name: str, sealer: Sealer) -> Iterator[bytes]:
    sealed = _sealed_key(file)
    if sealed is None:
        raise _altered()
    serialized = sealer.open(sealed, table="spool", column="key", row=name)
    try:
        handle = tink.proto_keyset_format.parse(serialized, secret_key_access.TOKEN)
        primitive: Any = handle.primitive(streaming_aead.StreamingAead)
        with primitive.new_decrypting_stream(file, _place(name)) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except tink.TinkError as error:
        raise _altered() from error


def _sealed_key(file: Any) -> bytes | None:
    head: bytes = file.read(len(_MAGIC) + _LENGTH_BYTES)
    if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + _LENGTH_BYTES:
        return None
    sealed: bytes = file.read(int.from_bytes(head[len(_MAGIC) :], "big"))
    return sealed


def _place(name: str) -> bytes:
    return b"rayhook.spool.1/" + name.encode("ascii")


def _altered() -> RayhookError:
    return RayhookError("a file of the spool is not what was written there", code="decryption_failed")


def _unwritable(error: OSError) -> ServiceUnavailable:
    if error.errno in _FULL:
        return ServiceUnavailable("the spool has no room left", code="spool_full")
    log.error("spool_unwritable", errno=error.errno)
    return ServiceUnavailable("the spool cannot be written", code="spool_unwritable")


def _is_draft(path: Path) -> bool:
    return path.name.startswith(_DRAFT)


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
