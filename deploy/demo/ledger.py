"""What the demo EHR and PACS were asked to give and to keep, in a file that outlives every process of the service.

The service's own tables cannot show that it lost or doubled something: whoever was written to can.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Act(StrEnum):
    """`asked`: the EHR's user opened a chart and the hook answered; the others are what the service did."""

    ASKED = "asked"
    RETRIEVED = "retrieved"
    STORED = "stored"
    WRITTEN = "written"


class Outcome(StrEnum):
    """`existing`: it was there already, and nothing changed."""

    CREATED = "created"
    EXISTING = "existing"
    REFUSED = "refused"
    SENT = "sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One act. `at` is seconds since the epoch, `request_id` the caller's X-Request-Id.

    `study` is a Study Instance UID. `what` is a resource type or `instance`, `identifier` its business identifier
    or its SOP Instance UID. `conditional`: whether a create was to find an earlier copy first.
    """

    at: float
    act: Act
    outcome: Outcome
    what: str
    request_id: str = ""
    identifier: str = ""
    study: str = ""
    subject: str = ""
    conditional: bool = False


class Ledger(Protocol):
    """Where acts are noted: nowhere by default, in a file where a test counts them."""

    def note(self, act: Act, outcome: Outcome, what: str, **facts: str | bool) -> None: ...


class NoLedger:
    def note(self, act: Act, outcome: Outcome, what: str, **facts: str | bool) -> None:
        """Keep nothing."""


class LedgerFile:
    """Appends one JSON object a line, before the answer goes out; safe to share between threads."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._clock = clock

    def note(self, act: Act, outcome: Outcome, what: str, **facts: str | bool) -> None:
        entry = Entry(at=self._clock(), act=act, outcome=outcome, what=what, **facts)  # type: ignore[arg-type]
        with self._lock, self._path.open("ab") as file:
            file.write(json.dumps(asdict(entry)).encode() + b"\n")


def read_ledger(path: Path) -> Iterator[Entry]:
    """Yield the entries in the order in which they were noted."""
    with path.open("rb") as lines:
        yield from map(entry_of, lines)


def entry_of(line: bytes) -> Entry:
    fields = json.loads(line)
    return Entry(**{**fields, "act": Act(fields["act"]), "outcome": Outcome(fields["outcome"])})
