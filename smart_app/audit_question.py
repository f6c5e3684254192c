"""What somebody asks of the log: typed into a form, then carried in an address that nobody else can read."""

import base64
import binascii
from datetime import UTC, datetime, timedelta

import msgspec
from pydantic import BaseModel

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.review import AuditSearch
from rayhook.auth.keys import Keyring
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest, RayhookError
from rayhook.fhir.text import translatable

_LONGEST = 200
_TOO_LONG = translatable("a field is too long")
_NEEDS_EHR = translatable("a patient or a person's reference is searched for within one EHR: choose it")
_NOT_LISTED = translatable("choose from the list")
_NO_DAY = translatable("a day is written as 2026-03-14")
_ENDED = translatable("this address was of a search in another session")


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every field as it was typed; empty where it was left out. `before` is where the page begins."""

    ehr: str = ""
    patient: str = ""
    person: str = ""
    client: str = ""
    study: str = ""
    first_day: str = ""
    last_day: str = ""
    kind: str = ""
    outcome: str = ""
    request_id: str = ""
    before: int | None = None

    def search(self) -> AuditSearch:
        """Raise InvalidRequest that names the field."""
        for name in msgspec.structs.fields(Question):
            value = getattr(self, name.name)
            if isinstance(value, str) and len(value) > _LONGEST:
                raise InvalidRequest(_TOO_LONG, expression=name.name)
        if self.patient and not self.ehr:
            raise InvalidRequest(_NEEDS_EHR, expression="ehr")
        last = _day("last_day", self.last_day)
        return AuditSearch(
            ehr_id=self.ehr or None,
            patient_id=self.patient.removeprefix("Patient/") or None,
            agent=self.person or None,
            client_id=self.client or None,
            entity=_study(self.study) if self.study else None,
            request_id=self.request_id or None,
            kinds=_kinds(self.kind),
            outcomes=_outcomes(self.outcome),
            since=_day("first_day", self.first_day),
            until=None if last is None else last + timedelta(days=1),
        )

    def asked(self) -> dict[str, str]:
        """Return what was asked for, for the log: it is sealed there, and found again by no index."""
        return {key: value for key, value in msgspec.to_builtins(self).items() if key != "before" and value}

    def sealed(self, keyring: Keyring, member: StaffMember) -> str:
        """Return the question as part of an address: good in this session alone."""
        content = keyring.seal(
            msgspec.json.encode(self), table="audit_question", column="address", row=member.session_key
        )
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    @classmethod
    def opened(cls, handle: str, keyring: Keyring, member: StaffMember) -> "Question":
        """Raise InvalidRequest for an address of another session, or of nobody's."""
        try:
            content = base64.urlsafe_b64decode(handle + "=" * (-len(handle) % 4))
            text = keyring.open_untrusted(
                content, table="audit_question", column="address", row=member.session_key
            )
            return msgspec.json.decode(text, type=cls)
        except (binascii.Error, ValueError, RayhookError, msgspec.MsgspecError) as error:
            raise InvalidRequest(_ENDED, code="search_ended") from error


class QuestionForm(BaseModel):
    """The form's fields, by the same names."""

    ehr: str = ""
    patient: str = ""
    person: str = ""
    client: str = ""
    study: str = ""
    first_day: str = ""
    last_day: str = ""
    kind: str = ""
    outcome: str = ""
    request_id: str = ""

    def question(self) -> Question:
        return Question(**{name: value.strip() for name, value in self.model_dump().items()})


def _study(written: str) -> str:
    """A study is meant by its UID, anything else as the event names it: "DiagnosticReport/1"."""
    text = written.strip()
    return f"urn:oid:{text}" if text.replace(".", "").isdigit() else text


def _kinds(written: str) -> tuple[AuditKind, ...]:
    """Return one kind, or all of a package."""
    kinds = tuple(kind for kind in AuditKind if written in {kind.value, kind.value.partition(":")[0]})
    if written and not kinds:
        raise InvalidRequest(_NOT_LISTED, expression="kind")
    return kinds


def _outcomes(written: str) -> tuple[Outcome, ...]:
    if written not in {"", "failed", *(str(one.value) for one in Outcome)}:
        raise InvalidRequest(_NOT_LISTED, expression="outcome")
    if written == "failed":
        return tuple(one for one in Outcome if one is not Outcome.SUCCESS)
    return (Outcome(int(written)),) if written else ()


def _day(name: str, written: str) -> datetime | None:
    if not written:
        return None
    try:
        return datetime.strptime(written, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise InvalidRequest(_NO_DAY, expression=name) from error
