from dataclasses import replace

import pytest

from rayhook.inference.anatomy import Region
from rayhook.inference.results import DeliveryState, StoredResult
from rayhook.inference.study import AnalysisStatus, StudyReference
from rayhook.smart_app.trend import Examined, prior_of, regions_examined
from tests.unit.smart_app.conftest import MODEL, study_result

HEAD, CHEST = frozenset({Region.HEAD}), frozenset({Region.CHEST})


def examined(name: str, started: str | None, *, regions=HEAD, probability=0.5, **changes) -> Examined:
    reference = StudyReference(
        "demo-ehr",
        "https://ehr.example/fhir",
        "p",
        f"study-{name}",
        f"1.2.{name}",
        "",
        False,
        started=started,
    )
    result = replace(study_result(f"1.2.{name}", probability=probability), **changes)
    stored = StoredResult(
        name, f"job-{name}", "demo-ehr", "p", reference, result, (), DeliveryState.PENDING, None, 0.0
    )
    return Examined(stored, regions)


NOW = examined("now", "2026-05-01", probability=0.8)
FINDING = NOW.stored.result.findings[0]


def prior(*earlier):
    return prior_of(FINDING, NOW, [NOW, *earlier])


def test_newest_of_the_earlier_studies_is_shown():
    found = prior(examined("old", "2020"), examined("last", "2025-03"), examined("mid", "2023"))
    assert (found.result_id, found.started) == ("last", "2025-03")


def test_study_is_not_its_own_prior():
    assert prior() is None


@pytest.mark.parametrize("started", ["2026-05-01", "2027"])
def test_later_or_simultaneous_study_is_no_prior(started):
    assert prior(examined("then", started)) is None


def test_study_of_another_part_of_the_body_is_no_prior():
    assert prior(examined("then", "2025", regions=CHEST)) is None


def test_study_of_an_unknown_part_of_the_body_is_no_prior():
    assert prior(examined("then", "2025", regions=frozenset())) is None


def test_study_without_an_answer_is_no_prior():
    assert prior(examined("then", "2025", status=AnalysisStatus.ABSTAINED)) is None


def test_other_finding_is_no_prior():
    other = (replace(FINDING, code="1"),)
    assert prior(examined("then", "2025", findings=other)) is None


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (MODEL, True),
        (replace(MODEL, weights_sha256="cd" * 32), False),
        (replace(MODEL, manifest_sha256="cd" * 32), False),
        (replace(MODEL, id="other"), False),
        (None, False),
    ],
)
def test_answers_of_another_model_do_not_compare(model, same):
    assert prior(examined("then", "2025", model=model)).same_model is same


@pytest.mark.parametrize(
    ("sites", "description", "regions"),
    [
        (("69536005",), None, HEAD),
        (("Head structure",), None, HEAD),
        ((), "CT chest without contrast", CHEST),
        ((), "Lv2", frozenset()),
        (("Thoracic spine",), "", frozenset({Region.SPINE})),
    ],
)
def test_part_of_the_body_is_what_is_plainly_said(sites, description, regions):
    assert regions_examined(sites, description, ()) == regions
