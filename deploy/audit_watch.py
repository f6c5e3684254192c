"""What a hospital finds unusual: the file of thresholds, protected patients and own records; and the watch's thread."""

import threading
import tomllib
from contextlib import AbstractContextManager
from datetime import time, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import structlog

from rayhook.audit.unusual import Watching
from rayhook.audit.verification import Verifier
from rayhook.audit.watch import Thresholds
from rayhook.deploy.threads import in_threads
from rayhook.fhir.errors import InvalidRequest, RayhookError

log = structlog.get_logger(__name__)

_LOOK_EVERY_S: Final = 10.0
_AGENT: Final = "rayhook"
_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Patient(msgspec.Struct, forbid_unknown_fields=True):
    ehr: str
    patient: str


class _Person(msgspec.Struct, forbid_unknown_fields=True):
    ehr: str
    person: str
    patient: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    patients: _Count = 50
    patients_minutes: _Count = 10
    denials: _Count = 5
    denials_minutes: _Count = 1
    night_from: time = time(22)
    night_to: time = time(6)
    time_zone: str = "UTC"
    quiet_minutes: _Count = 60
    protected: list[_Patient] = []
    own_record: list[_Person] = []


def load_thresholds(path: Path | None) -> Thresholds:
    """Read the file; the defaults where there is none. Raises InvalidRequest that names the key at fault."""
    if path is None:
        return Thresholds()
    try:
        file = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File, strict=False)
        zone = ZoneInfo(file.time_zone)
    except OSError as error:
        raise InvalidRequest(f"watch file {path}: cannot be read", code="watch_unreadable") from error
    except ZoneInfoNotFoundError as error:
        raise InvalidRequest(f"watch file {path}: time_zone is not known", code="watch_invalid") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise InvalidRequest(f"watch file {path}: {_rule(error)}", code="watch_invalid") from error
    return Thresholds(
        patients=file.patients,
        patients_within=timedelta(minutes=file.patients_minutes),
        denials=file.denials,
        denials_within=timedelta(minutes=file.denials_minutes),
        night_from=file.night_from,
        night_to=file.night_to,
        zone=zone,
        quiet=timedelta(minutes=file.quiet_minutes),
        vips=frozenset((one.ehr, one.patient) for one in file.protected),
        people={(one.ehr, one.person): one.patient for one in file.own_record},
    )


def _rule(error: ValueError) -> str:
    """Msgspec names the key and the type; TOML's own error quotes at most a place in the file."""
    return str(error)


def watching(watch: Watching, verifier: Verifier, *, verify_every_s: float) -> AbstractContextManager[None]:
    """Look at what is new every ten seconds, and verify the whole log from time to time."""
    return in_threads(
        {
            "audit-watch": partial(_look_until, watch),
            "audit-verify": partial(_verify_until, verifier, verify_every_s),
        }
    )


def _look_until(watch: Watching, stopping: threading.Event) -> None:
    while not stopping.wait(_LOOK_EVERY_S):
        try:
            raised = watch.step()
        except RayhookError as error:
            log.warning("audit_watch_waits", code=error.code)
        else:
            if raised:
                log.warning("unusual_access_found", items=raised)


def _verify_until(verifier: Verifier, every_s: float, stopping: threading.Event) -> None:
    while not stopping.wait(every_s):
        verifier.run(agent=_AGENT)
