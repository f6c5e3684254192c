import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import InvalidRequest, NotFound, RayhookError, ServiceUnavailable
from rayhook.inference.sealed_spool import SealedSpool

_CANARY = b"CANARY^PATIENT"
_MIB = 1 << 20


@pytest.fixture(scope="module")
def keyring_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool") / "keyring.json"


@pytest.fixture(scope="module")
def keyring(keyring_path: Path) -> Keyring:
    return Keyring.load_or_create(keyring_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path, keyring: Keyring) -> SealedSpool:
    return SealedSpool(folder, keyring, 64 * _MIB)


@pytest.mark.parametrize("size", [0, 1, _MIB - 1, _MIB, _MIB + 1, 5 * _MIB + 17])
def test_reads_what_was_written(spool: SealedSpool, size: int) -> None:
    content = os.urandom(size)
    spool.write("a1", [content[:100], content[100:]])
    assert spool.load("a1") == content


def test_another_process_with_the_keyring_reads(spool: SealedSpool, folder: Path, keyring_path: Path) -> None:
    spool.write("a1", [_CANARY])
    theirs = Keyring.load_or_create(keyring_path)
    assert SealedSpool(folder, theirs, _MIB).load("a1") == _CANARY


def test_without_the_key_nothing_is_read(spool: SealedSpool, folder: Path) -> None:
    spool.write("a1", [_CANARY])
    stranger = SealedSpool.ephemeral(folder, _MIB)
    with pytest.raises(RayhookError, match="does not belong"):
        stranger.load("a1")


def test_nothing_readable_is_on_the_disk(spool: SealedSpool, folder: Path) -> None:
    spool.write("a1", [_CANARY * 100_000])
    assert all(_CANARY not in path.read_bytes() for path in folder.iterdir())


def test_a_file_under_another_name_is_refused(spool: SealedSpool, folder: Path) -> None:
    spool.write("a1", [_CANARY])
    (folder / "a1").rename(folder / "a2")
    with pytest.raises(RayhookError) as refused:
        spool.load("a2")
    assert refused.value.code == "decryption_failed"


@pytest.mark.parametrize("place", [0, 9, 40, 200, -1])
def test_a_changed_byte_is_refused(spool: SealedSpool, folder: Path, place: int) -> None:
    spool.write("a1", [_CANARY * 1000])
    content = bytearray((folder / "a1").read_bytes())
    content[place] ^= 1
    (folder / "a1").write_bytes(content)
    with pytest.raises(RayhookError) as refused:
        spool.load("a1")
    assert refused.value.code == "decryption_failed"


@pytest.mark.parametrize("kept", [0, 5, 60, _MIB, 2 * _MIB - 1])
def test_a_file_cut_short_is_refused(spool: SealedSpool, folder: Path, kept: int) -> None:
    spool.write("a1", [bytes(2 * _MIB)])
    os.truncate(folder / "a1", kept)
    with pytest.raises(RayhookError) as refused:
        spool.load("a1")
    assert refused.value.code == "decryption_failed"


def test_the_same_name_again_replaces(spool: SealedSpool) -> None:
    spool.write("a1", [b"old"])
    spool.write("a1", [b"new"])
    assert (spool.load("a1"), spool.names()) == (b"new", ["a1"])


def test_a_removed_file_is_not_found(spool: SealedSpool) -> None:
    spool.write("a1", [b"x"])
    spool.remove("a1")
    with pytest.raises(NotFound):
        spool.load("a1")


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", ".draft-1", "a b", "a\n", "ä", "x" * 129])
def test_names_stay_in_the_folder(spool: SealedSpool, name: str) -> None:
    with pytest.raises(InvalidRequest):
        spool.write(name, [b"x"])


def test_beyond_its_limit_the_spool_is_full(folder: Path, keyring: Keyring) -> None:
    spool = SealedSpool(folder, keyring, 3 * _MIB)
    spool.write("a1", [bytes(_MIB)])
    with pytest.raises(ServiceUnavailable) as refused:
        spool.write("a2", [bytes(_MIB)] * 3)
    assert (refused.value.code, spool.names()) == ("spool_full", ["a1"])


def test_what_did_not_fit_leaves_nothing(folder: Path, keyring: Keyring) -> None:
    with pytest.raises(ServiceUnavailable):
        SealedSpool(folder, keyring, _MIB).write("a1", [bytes(_MIB)] * 3)
    assert list(folder.iterdir()) == []


def test_what_was_removed_is_room_again(folder: Path, keyring: Keyring) -> None:
    spool = SealedSpool(folder, keyring, 3 * _MIB)
    for name in ("a", "b", "c", "d"):
        spool.write(name, [b"x" * 2 * _MIB])
        spool.remove(name)


def test_what_another_process_wrote_takes_room(folder: Path, keyring: Keyring) -> None:
    spool, other = (SealedSpool(folder, keyring, 5 * _MIB) for _ in range(2))
    spool.write("a", [b"x" * 3 * _MIB])
    other.write("b", [b"x" * _MIB])
    with pytest.raises(ServiceUnavailable) as refusal:
        spool.write("c", [b"x" * _MIB])
    assert refusal.value.code == "spool_full"


def test_far_from_the_limit_the_folder_is_not_counted_for_every_file(
    spool: SealedSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    used_bytes = SealedSpool.used_bytes
    monkeypatch.setattr(SealedSpool, "used_bytes", lambda self: counted.append(1) or used_bytes(self))
    for number in range(20):
        spool.write(f"file-{number}", [b"x"])
    assert len(counted) < 5


def test_a_full_disk_is_told(spool: SealedSpool) -> None:
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MIB, was[1]))
    try:
        with pytest.raises(ServiceUnavailable) as refused:
            spool.write("a1", [bytes(_MIB)] * 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
        signal.signal(signal.SIGXFSZ, handler)
    assert (refused.value.code, spool.names()) == ("spool_full", [])


def test_an_error_of_the_source_is_the_callers(spool: SealedSpool) -> None:
    def broken() -> object:
        yield b"x"
        raise ValueError("the sender went away")

    with pytest.raises(ValueError, match="went away"):
        spool.write("a1", broken())
    assert spool.names() == []


def test_the_sweep_takes_what_is_old(folder: Path, keyring: Keyring) -> None:
    spool = SealedSpool(folder, keyring, _MIB)
    spool.write("old", [b"x"])
    spool.write("new", [b"x"])
    past = time.time() - 100
    os.utime(folder / "old", (past, past))
    assert (spool.sweep(90), spool.names()) == (1, ["new"])


def test_files_and_folder_are_the_owners_only(spool: SealedSpool, folder: Path) -> None:
    spool.write("a1", [b"x"])
    assert (folder.stat().st_mode & 0o777, (folder / "a1").stat().st_mode & 0o777) == (0o700, 0o600)


_KILLED = """
import os, signal, sys
from pathlib import Path
from rayhook.inference.sealed_spool import SealedSpool
spool = SealedSpool.ephemeral(Path(sys.argv[1]), 1 << 26)
spool.write("whole", [b"CANARY^PATIENT" * 100_000])
def half():
    yield b"CANARY^PATIENT" * 300_000
    os.kill(os.getpid(), signal.SIGKILL)
spool.write("half", half())
"""


def test_after_kill_nothing_of_an_ephemeral_spool_can_be_read(folder: Path) -> None:
    process = subprocess.run([sys.executable, "-c", _KILLED, str(folder)], check=False)
    left = list(folder.iterdir())
    assert process.returncode == -signal.SIGKILL
    assert len(left) == 2
    assert all(re.search(b"CANARY", path.read_bytes()) is None for path in left)
    with pytest.raises(RayhookError):
        SealedSpool.ephemeral(folder, _MIB).load("whole")


def test_drafts_of_a_killed_writer_are_swept(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(folder)], check=False)
    past = time.time() - 61
    for path in folder.iterdir():
        os.utime(path, (past, past))
    spool = SealedSpool.ephemeral(folder, _MIB)
    assert (spool.sweep(86_400), spool.names()) == (1, ["whole"])
