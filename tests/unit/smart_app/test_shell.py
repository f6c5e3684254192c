import pytest

from rayhook.auth.registry import EHRRegistry
from rayhook.auth.roles import Role
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.sessions import SMARTSession
from rayhook.smart_app.pages import Pages
from rayhook.smart_app.patient import KnownStudies, PatientBanner
from rayhook.smart_app.shell import NOBODY, reader_of
from rayhook.smart_app.window import note_session, window_of_request
from rayhook.smart_app.worklist_order import Selection, page_of


def session(**changes: object) -> SMARTSession:
    known = {
        "ehr_id": "demo-ehr",
        "fhir_base_url": "https://ehr.example/fhir",
        "client_id": "rayhook",
        "scopes": ScopeSet.parse("patient/*.rs"),
        "access_token": "t",
        "access_token_expires_at": 0.0,
        "patient_id": "p",
        "fhir_user": "Practitioner/1",
        "name": "Dr A",
        "roles": frozenset({Role.RADIOLOGIST, Role.CLINICIAN}),
    }
    return SMARTSession(**{**known, **changes})  # type: ignore[arg-type]


def test_reader_is_named_with_every_role():
    assert reader_of(session()).roles == ("Clinician", "Radiologist")


def test_page_without_a_session_has_no_reader():
    assert reader_of(None) is NOBODY


@pytest.mark.parametrize("needed", [True, False])
def test_banner_is_shown_where_the_ehr_does_not_show_the_patient(needed):
    with window_of_request():
        note_session(session(need_patient_banner=needed))
        page = Pages(EHRRegistry()).render(
            "worklist.html",
            ehr=None,
            patient=PatientBanner("Ana Osler"),
            page=page_of([], Selection()),
            groups=[],
            selection=Selection(),
            modalities=[],
            stages={},
            meanings={},
            known=KnownStudies(),
            may_start=False,
            in_progress=False,
        )
    assert (b"Ana Osler" in page.body) is needed
