"""The audit as AuditEvents: for compliance officers by their session, for an EHR's system by its token.

Spec: FHIR R4 AuditEvent; IHE BALP 1.1.3, "ATNA: retrieve"; IHE ITI-81
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from sqlalchemy import select
from sqlmodel import Session
from starlette.responses import Response

from rayhook.audit.balp import Observer, audit_event
from rayhook.audit.balp_forms import FORMS
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.models import AUDIT_EVENT
from rayhook.audit.record import AuditEntry
from rayhook.audit.review import AuditRecord, AuditSearch, opened
from rayhook.audit.review import search as search_log
from rayhook.auth.bearer import BearerTokens
from rayhook.auth.registry import EHR
from rayhook.auth.roles import Permission
from rayhook.fhir.errors import Forbidden, InvalidRequest, NotFound, RayhookError
from rayhook.fhir.references import parse_reference
from rayhook.smart_app.access import Gate, agent_of
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.fhir_negotiation import fhir_response, is_lenient, read_form, require_json
from rayhook.smart_app.fhir_parameters import date_period
from rayhook.smart_app.fhir_search import CURSOR

AUDIT_PARAMETERS: Final = {
    "agent": "reference",
    "date": "date",
    "entity": "reference",
    "outcome": "token",
    "patient": "reference",
    "subtype": "token",
    "type": "token",
}

_DEFAULT_COUNT: Final = 50
_MAX_COUNT: Final = 200
_CONTROLS: Final = frozenset({"_count", "_format", "_pretty", "_total", CURSOR})
_ONE_EHR: Final = 1

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class AuditReader:
    """Who reads. `ehr` is the only one whose events are shown, None for those who may see all."""

    agent: str
    ehr: EHR | None = None
    client_id: str | None = None

    @property
    def holder(self) -> str:
        return json.dumps([self.agent, None if self.ehr is None else self.ehr.id, self.client_id])


class AuditAccess:
    """The dependency of the routes of AuditEvent; the access matrix reads its permission."""

    permission = Permission.AUDIT_LOG_READ

    def __init__(self, gate: Gate, tokens: BearerTokens) -> None:
        self._gate = gate
        self._tokens = tokens

    def reader(self, request: Request) -> AuditReader:
        """Return the staff member of the session cookie, or the system whose token is shown.

        No clinical scope but `system/AuditEvent` opens the audit: it tells who looked at whom. Somebody of an EHR
        would see that EHR's events alone, and no registration can give them the role.
        """
        authorization = request.headers.get("Authorization")
        if authorization is not None:
            return self._system(request, authorization)
        staff = self._gate.of_staff
        member = staff.member(request)
        if member is not None:
            staff.require(member, self.permission)
            return AuditReader(member.agent)
        viewer = self._gate.viewer(request)
        self._gate.require(viewer, self.permission)
        return AuditReader(agent_of(viewer.user), viewer.ehr, viewer.user.client_id)

    def _system(self, request: Request, authorization: str) -> AuditReader:
        try:
            user = self._tokens.holder(authorization)
        except RayhookError as error:
            raise self._gate.refused(error, None) from error
        interaction = "r" if "event_id" in request.path_params else "s"
        granting = user.scopes.granting("AuditEvent", interaction, contexts=("system",))
        if user.fhir_user is not None or not any(scope.query is None for scope in granting):
            refusal = Forbidden(
                "the granted scope does not allow reading of AuditEvent", code="scope_insufficient"
            )
            raise self._gate.refused(refusal, user, permission=self.permission)
        return AuditReader(agent_of(user), user.ehr, user.client_id)


class AuditViews:
    def __init__(self, deps: SMARTDependencies, base_url: str) -> None:
        self._deps = deps
        self._url = f"{base_url}/AuditEvent"
        self._observer = Observer(
            name=deps.organization or "Rayhook",
            address=deps.public_base_url,
            version=version("rayhook"),
            fhir_bases={ehr.id: ehr.fhir_base_urls[0] for ehr in deps.registry},
        )

    def read(self, reader: AuditReader, event_id: str) -> dict[str, Any]:
        with self._deps.sessions() as session:
            record = self._find(session, event_id)
            if record is not None and reader.ehr is not None and record.ehr_id != reader.ehr.id:
                record = None
            self._record(session, reader, query=f"AuditEvent/{event_id}", shown=0 if record is None else 1)
            session.commit()
        if record is None:
            raise NotFound("AuditEvent: no resource has this id")
        return audit_event(record, self._observer)

    def _find(self, session: Session, event_id: str) -> AuditRecord | None:
        query = select(AUDIT_EVENT).where(AUDIT_EVENT.c.hash == event_id)
        row = session.execute(query).mappings().first()
        return None if row is None else opened(session, self._deps.keyring, row)

    def search(self, reader: AuditReader, pairs: Pairs, *, lenient: bool) -> dict[str, Any]:
        asked = self._opened(reader, pairs)
        wanted = self._wanted(reader, asked.pairs, lenient=lenient)
        records: tuple[AuditRecord, ...] = ()
        onward = None
        with self._deps.sessions() as session:
            if wanted is not None and asked.count:
                page = search_log(session, self._deps.keyring, wanted, limit=asked.count, before=asked.before)
                records, onward = page.records, page.before
            query = f"AuditEvent?{urlencode(asked.pairs)}"
            self._record(session, reader, query=query, shown=len(records))
            session.commit()
        return self._bundle(asked, records, onward, holder=reader.holder)

    def _record(self, session: Session, reader: AuditReader, *, query: str, shown: int) -> None:
        self._deps.audit.record(
            session,
            AuditEntry(
                kind=AuditKind.AUDIT_LOG_READ,
                ehr_id=None if reader.ehr is None else reader.ehr.id,
                agent=reader.agent,
                client_id=reader.client_id,
                query=query,
                detail={"shown": str(shown)},
            ),
        )

    def _bundle(
        self, asked: "_Asked", records: Iterable[AuditRecord], onward: int | None, *, holder: str
    ) -> dict[str, Any]:
        used = [*asked.pairs, ("_count", str(asked.count))]
        links = [{"relation": "self", "url": f"{self._url}?{urlencode(used)}"}]
        if onward is not None:
            cursor = self._seal(replace(asked, before=onward), holder)
            links.append({"relation": "next", "url": f"{self._url}?{CURSOR}={cursor}"})
        entries = [
            {
                "fullUrl": f"{self._url}/{record.hash}",
                "resource": audit_event(record, self._observer),
                "search": {"mode": "match"},
            }
            for record in records
        ]
        bundle = {"resourceType": "Bundle", "type": "searchset", "link": links}
        return {**bundle, "entry": entries} if entries else bundle

    def _seal(self, asked: "_Asked", holder: str) -> str:
        content = json.dumps({"pairs": asked.pairs, "count": asked.count, "before": asked.before})
        sealed = self._deps.keyring.seal(content.encode(), table="fhir_audit", column="cursor", row=holder)
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def _opened(self, reader: AuditReader, pairs: Pairs) -> "_Asked":
        cursor = next((value for name, value in pairs if name == CURSOR), None)
        if cursor is None:
            filters = [(name, value) for name, value in pairs if name not in _CONTROLS]
            return _Asked(filters, _count(pairs))
        try:
            sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            text = self._deps.keyring.open(sealed, table="fhir_audit", column="cursor", row=reader.holder)
        except (ValueError, RayhookError) as error:
            raise InvalidRequest("_cursor: is not one of yours", expression=CURSOR) from error
        content = json.loads(text)
        kept = [(name, value) for name, value in content["pairs"]]
        return _Asked(kept, content["count"], content["before"])

    def _wanted(self, reader: AuditReader, pairs: Pairs, *, lenient: bool) -> AuditSearch | None:
        """Return what to look for, None where nothing can be found. All parameters have to fit.

        Raises InvalidRequest for a parameter that is not supported, unless `lenient`.
        """
        wanted = AuditSearch(ehr_id=None if reader.ehr is None else reader.ehr.id)
        for name, value in pairs:
            reading = _READINGS.get(name)
            if reading is None:
                if lenient:
                    continue
                shown = name.partition(":")[0][:40]
                raise InvalidRequest(f"search parameter {shown} is not supported", expression=shown)
            found = reading(self, wanted, value)
            if found is None:
                return None
            wanted = found
        return wanted

    def _of_ehr(self, wanted: AuditSearch, value: str, name: str) -> tuple[str | None, str] | None:
        """Return the EHR that a reference is of, and the reference as its events have it.

        A relative one is of the reader's EHR, or of the only one there is.
        """
        for ehr in self._deps.registry:
            for url in ehr.fhir_base_urls:
                if value.startswith(f"{url}/"):
                    is_other = wanted.ehr_id is not None and wanted.ehr_id != ehr.id
                    return None if is_other else (ehr.id, value.removeprefix(f"{url}/"))
        if wanted.ehr_id is not None:
            return wanted.ehr_id, value
        if len(self._deps.registry) == _ONE_EHR:
            return next(iter(self._deps.registry)).id, value
        raise InvalidRequest(f"{name}: has to carry its EHR's base URL", expression=name)

    def patient(self, wanted: AuditSearch, value: str) -> AuditSearch | None:
        found = self._of_ehr(wanted, value, "patient")
        if found is None:
            return None
        ehr_id, reference = found
        patient_id = reference.removeprefix("Patient/")
        if wanted.patient_id not in (None, patient_id):
            return None
        return replace(wanted, ehr_id=ehr_id, patient_id=patient_id)

    def agent(self, wanted: AuditSearch, value: str) -> AuditSearch | None:
        if not _is_reference(value):  # an account of the staff, or a client: of no EHR
            return replace(wanted, agent=value)
        found = self._of_ehr(wanted, value, "agent")
        return None if found is None else replace(wanted, ehr_id=found[0], agent=found[1])

    def entity(self, wanted: AuditSearch, value: str) -> AuditSearch | None:
        if not _is_reference(value):
            return replace(wanted, entity=value)
        found = self._of_ehr(wanted, value, "entity")
        return None if found is None else replace(wanted, ehr_id=found[0], entity=found[1])

    def outcome(self, wanted: AuditSearch, value: str) -> AuditSearch | None:
        codes = [one.rpartition("|")[2] for one in value.split(",")]
        found = tuple(one for one in Outcome if str(one.value) in codes)
        both = tuple(one for one in found if not wanted.outcomes or one in wanted.outcomes)
        return replace(wanted, outcomes=both) if both else None

    def type(self, wanted: AuditSearch, value: str) -> AuditSearch | None:
        return _of_kinds(wanted, (kind for kind, form in FORMS.items() if _is_coded(form.type, value)))

    def subtype(self, wanted: AuditSearch, value: str) -> AuditSearch | None:
        return _of_kinds(wanted, (kind for kind, form in FORMS.items() if _is_coded(form.subtype, value)))

    def date(self, wanted: AuditSearch, value: str) -> AuditSearch | None:
        prefix, low, high = date_period(value, "date")
        window = _WINDOWS.get(prefix)
        if window is None:
            raise InvalidRequest("date: this prefix is not supported", expression="date")
        since, until = window(low, high)
        starts = [one for one in (wanted.since, since) if one is not None]
        ends = [one for one in (wanted.until, until) if one is not None]
        return replace(wanted, since=max(starts, default=None), until=min(ends, default=None))


@dataclass(frozen=True, slots=True)
class _Asked:
    pairs: Pairs
    count: int
    before: int | None = None


_Reading = Callable[[AuditViews, AuditSearch, str], AuditSearch | None]
_READINGS: Final[dict[str, _Reading]] = {
    "agent": AuditViews.agent,
    "date": AuditViews.date,
    "entity": AuditViews.entity,
    "outcome": AuditViews.outcome,
    "patient": AuditViews.patient,
    "subtype": AuditViews.subtype,
    "type": AuditViews.type,
}
_Window = tuple[datetime | None, datetime | None]
_WINDOWS: Final[dict[str, Callable[[datetime, datetime], _Window]]] = {
    "eq": lambda low, high: (low, high),
    "ge": lambda low, _: (low, None),
    "gt": lambda _, high: (high, None),
    "sa": lambda _, high: (high, None),
    "le": lambda _, high: (None, high),
    "lt": lambda low, _: (None, low),
    "eb": lambda low, _: (None, low),
}


def _of_kinds(wanted: AuditSearch, kinds: Iterator[AuditKind]) -> AuditSearch | None:
    found = tuple(kind for kind in kinds if not wanted.kinds or kind in wanted.kinds)
    return replace(wanted, kinds=found) if found else None


def _is_coded(coding: Any, value: str) -> bool:
    """Spec: FHIR R4 search.html#token."""
    if coding is None:
        return False
    for one in value.split(","):
        system, bar, code = one.rpartition("|")
        if (not code or coding.code == code) and (not bar or coding.system == system):
            return True
    return False


def _is_reference(value: str) -> bool:
    try:
        parse_reference(value)
    except InvalidRequest:
        return False
    return True


def _count(pairs: Pairs) -> int:
    value = next((value for name, value in pairs if name == "_count"), str(_DEFAULT_COUNT))
    if not value.isascii() or not value.isdecimal() or len(value) > 9:  # noqa: PLR2004 - digits
        raise InvalidRequest("_count: must be a whole number from 0", expression="_count")
    return min(int(value), _MAX_COUNT)


def build_audit_router(deps: SMARTDependencies, gate: Gate, tokens: BearerTokens, base_url: str) -> APIRouter:
    router = APIRouter(prefix="/AuditEvent", dependencies=[Depends(require_json)])
    views = AuditViews(deps, base_url)
    reading = Annotated[AuditReader, Depends(AuditAccess(gate, tokens).reader)]

    @router.get("")
    def search(request: Request, reader: reading) -> Response:
        pairs = request.query_params.multi_items()
        return fhir_response(views.search(reader, pairs, lenient=is_lenient(request)))

    @router.post("/_search")
    def search_by_post(
        request: Request, reader: reading, pairs: Annotated[Pairs, Depends(read_form)]
    ) -> Response:
        return fhir_response(views.search(reader, pairs, lenient=is_lenient(request)))

    @router.get("/{event_id}")
    def read(event_id: str, reader: reading) -> Response:
        return fhir_response(views.read(reader, event_id))

    return router
