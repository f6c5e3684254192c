"""Who reads the page, as its top bar says."""

from dataclasses import dataclass

from rayhook.auth.roles import Role
from rayhook.auth.sessions import SMARTSession
from rayhook.smart_app.role_texts import ROLE_NAMES


@dataclass(frozen=True, slots=True)
class Reader:
    """roles: to be translated.  need_patient_banner: that the EHR does not show whose chart is open.

    Spec: SMART App Launch 2.2.0, "need_patient_banner"
    """

    name: str | None
    roles: tuple[str, ...]
    need_patient_banner: bool


NOBODY = Reader(None, (), need_patient_banner=True)


def reader_of(session: SMARTSession | None) -> Reader:
    if session is None:
        return NOBODY
    roles = tuple(ROLE_NAMES[role] for role in Role if role in session.roles)
    return Reader(session.name, roles, session.need_patient_banner)
