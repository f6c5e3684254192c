"""What is planted in a patient's data, in all the spellings in which it could lie somewhere."""

import base64
import gzip
import io
import re
import secrets
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

ROOT_UID = "2.25.319907214458170933417762095241871"
BIRTH = ("1931-07-29", "19310729", "29.07.1931", "29/07/1931", "07/29/1931", "29 July 1931", "July 29, 1931")
PIXELS = np.random.default_rng(7041).integers(700, 800, 32, dtype=np.uint16)

PLANTED: dict[str, str] = {
    "accession": "ACC88341ZQX",
    "added finding": "Grolubex midline shift",
    "address": "1731 Quillfeather Lane",
    "answer comment": "comment Blorbexin beside the Krantor",
    "answer reason": "reason Vantablorp of the coil",
    "answer site": "left of the Plimsovar",
    "archive error": "PACSERR Quabblegorn study refused",
    "birth": BIRTH[0],
    "city": "Ostermoorbruch",
    "correction reason": "corrected since Wimblethorpe",
    "device serial": "SN-QUORV-99317",
    "e-mail": "bq.zyq@canary-mail.example",
    "EHR error": "EHRERR Snarfblat may not be read",
    "emergency reason": "unconscious Drembulax, no colleague",
    "encounter": "enc-canary-77412",
    "family name": "Zyquathorne",
    "given name": "Brunhildegaard",
    "hold reason": "litigation Krazzlewick v. clinic",
    "hook value": "BADVALUE Trundleby",
    "insurance number": "919-70-4183",
    "institution": "Sankt Quibbelin Klinik",
    "maiden name": "Vexelwhistle",
    "middle name": "Ottokarine",
    "operator": "Fennimorque",
    "order note": "patient says Skrivvelund hurts",
    "order reason": "status after Quorvexine trial",
    "patient comments": "lives with the cat Mortifexa",
    "patient id": "pt-canary-5f3a9c",
    "phone": "+1-555-0147-8391",
    "postal code": "Q7X41ZW",
    "private tag": "PRIVTAG-9931-QXZ",
    "protocol": "Brunnquell FLAIR protocol",
    "record number": "MRN70419QX83",
    "referrer": "Wexelbaumer",
    "review note": "talked to Puddlemere about it",
    "search": "nobody Flummoxine",
    "series description": "AX T2 FLAIR Jarrowbex",
    "series uid": f"{ROOT_UID}.11",
    "image uid": f"{ROOT_UID}.11.1",
    "study description": "MR head seizure Tarnwick",
    "study uid": f"{ROOT_UID}.1",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A canary, and where it lay. Its repr is for who mends the leak: the values are made up."""

    canary: str
    where: str
    around: bytes


class Search:
    """Looks for strings in bytes: as text in several encodings and cases, quoted, as hexadecimal and as base64."""

    def __init__(self, canaries: Mapping[str, str | bytes]) -> None:
        self._spellings = {
            spelling: name for name, value in canaries.items() for spelling in _spellings(name, value)
        }

    def names(self) -> set[str]:
        return set(self._spellings.values())

    def within(self, data: bytes, where: str) -> Iterator[Found]:
        for content in _opened(data):
            lowered = content.lower()
            for spelling, name in self._spellings.items():
                at = lowered.find(spelling)
                if at >= 0:
                    yield Found(name, where, content[max(0, at - 80) : at + len(spelling) + 80])

    def in_files(self, paths: Iterable[Path]) -> Iterator[Found]:
        for path in paths:
            if path.is_file() and not path.is_symlink():
                try:
                    yield from self.within(path.read_bytes(), str(path))
                except FileNotFoundError:  # a file of a server that works on
                    continue


def _opened(data: bytes) -> Iterator[bytes]:
    """Yield the bytes, and what an archive holds: it hides its words, and keeps no secret."""
    yield data
    if data.startswith(b"PK\x03\x04"):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    if data.startswith(b"\x1f\x8b"):
        with suppress(OSError, EOFError):
            yield gzip.decompress(data)


def _spellings(name: str, value: str | bytes) -> set[bytes]:
    """Return the spellings in lower case, as what is searched is put into it."""
    written = [value] if isinstance(value, bytes) else [one.encode() for one in _forms(name, value)]
    found: set[bytes] = set()
    for one in written:
        found |= {one, one.hex().encode(), *_base64(one)}
    if isinstance(value, str):
        for form in _forms(name, value):
            found |= {form.encode("utf-16-le"), form.encode("utf-16-be")}
            found |= {quote(form, safe="").encode(), quote(form).replace("%20", "+").encode()}
            found |= {form.replace(" ", "^").encode(), re.escape(form).encode()}
    return {one.lower() for one in found if len(one) >= 7}


def _forms(name: str, value: str) -> tuple[str, ...]:
    return BIRTH if name == "birth" else (value,)


def _base64(value: bytes) -> Iterator[bytes]:
    """Yield what the value comes to at each place within a group of three, without what its neighbours decide."""
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * shift + value).rstrip(b"=")
            yield whole[-(-shift * 4 // 3) + (1 if shift else 0) : len(whole) - 1]


def token() -> str:
    return secrets.token_urlsafe(32)
