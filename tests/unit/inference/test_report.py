import base64
import hashlib
from dataclasses import replace
from decimal import Decimal
from urllib.parse import parse_qsl

import pytest

from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.r4 import encode_json, validate
from rayhook.inference.report import build_resources, may_write, transaction
from rayhook.inference.statement import EXPERIMENTAL, INVESTIGATIONAL, incomplete, limits
from rayhook.inference.study import AnalysisStatus
from tests.unit.inference.samples import (
    MODEL,
    SERIES_UID,
    analysed,
    instance,
    manifest,
    nothing_to_rate,
    reference,
    refused_instance,
    unanswered,
)

UNANSWERED = [AnalysisStatus.ABSTAINED, AnalysisStatus.OUT_OF_SCOPE, AnalysisStatus.REFUSED]
AI_ASSERTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}


def build(result=None, **changes):
    model = manifest() if result is None or result.model is not None else None
    return build_resources(reference(**changes), result or analysed(), model, organization="Demo hospital")


def of_type(resources, resource_type):
    return [one for one in resources if one["resourceType"] == resource_type]


def report_of(resources):
    (report,) = of_type(resources, "DiagnosticReport")
    return report


def finding_of(resources):
    return of_type(resources, "Observation")[1]


def test_a_result_is_a_device_two_observations_a_report_and_a_provenance():
    assert [one["resourceType"] for one in build()] == [
        "Device",
        "Observation",
        "Observation",
        "DiagnosticReport",
        "Provenance",
    ]


@pytest.mark.parametrize("probability", [0.0, 0.02, 0.4, 0.999_999, 1.0])
@pytest.mark.parametrize("started", ["2026-03-12", "2026-03-12T10:15:00Z", None])
@pytest.mark.parametrize("service_request", ["ServiceRequest/order-1", None])
def test_every_resource_is_valid_r4(probability, started, service_request):
    for one in build(analysed(probability), started=started, service_request=service_request):
        validate(one)


@pytest.mark.parametrize("status", UNANSWERED)
def test_every_resource_without_an_answer_is_valid_r4(status):
    for one in build(unanswered(status)):
        validate(one)


def test_the_transaction_is_valid_r4():
    validate(transaction(build()))


def test_the_report_is_preliminary():
    assert report_of(build())["status"] == "preliminary"


def test_the_report_is_about_the_patient_in_context():
    assert report_of(build())["subject"] == {"reference": "Patient/patient-1"}


def test_the_report_names_study_and_order():
    report = report_of(build())
    assert (report["imagingStudy"], report["basedOn"]) == (
        [{"reference": "ImagingStudy/study-1"}],
        [{"reference": "ServiceRequest/order-1"}],
    )


def test_the_report_is_performed_by_an_organization_and_interpreted_by_nobody():
    report = report_of(build())
    assert report["performer"] == [{"type": "Organization", "display": "Demo hospital"}]
    assert "resultsInterpreter" not in report


def test_an_unknown_acquisition_time_is_told_as_unknown():
    report = report_of(build(started=None))
    assert report["_effectiveDateTime"]["extension"][0]["valueCode"] == "unknown"


@pytest.mark.parametrize("resource_type", ["Observation", "DiagnosticReport", "Provenance"])
def test_what_the_model_made_is_labelled_so(resource_type):
    for one in of_type(build(), resource_type):
        assert one["meta"]["security"] == [AI_ASSERTED]


@pytest.mark.parametrize("result", [analysed(), *map(unanswered, UNANSWERED)], ids=lambda r: r.status.value)
def test_every_conclusion_says_that_it_is_investigational(result):
    assert INVESTIGATIONAL in report_of(build(result))["conclusion"]


def test_a_positive_finding_is_in_the_conclusion_codes():
    assert report_of(build())["conclusionCode"][0]["coding"][0]["code"] == "126952004"


def test_a_negative_finding_has_no_conclusion_code():
    assert "conclusionCode" not in report_of(build(analysed(0.1)))


def test_a_negative_finding_does_not_exclude_disease():
    assert "does not exclude disease" in report_of(build(analysed(0.1)))["conclusion"]


@pytest.mark.parametrize(("probability", "code"), [(0.91, "POS"), (0.4, "POS"), (0.39, "NEG")])
def test_a_finding_is_interpreted_by_the_threshold(probability, code):
    finding = finding_of(build(analysed(probability)))
    assert finding["interpretation"][0]["coding"][0]["code"] == code


@pytest.mark.parametrize(
    ("probability", "shown"), [(1.0, "above 0.999"), (0.0, "below 0.001"), (0.5, "0.500")]
)
def test_no_probability_is_told_as_certain(probability, shown):
    assert f"probability {shown}, " in report_of(build(analysed(probability)))["conclusion"]


def test_the_probability_is_in_the_extension():
    (extension,) = finding_of(build(analysed(0.91234567)))["extension"]
    assert str(extension["valueDecimal"]) == "0.9123"


def test_the_probability_is_also_a_component():
    component = finding_of(build(analysed(0.91)))["component"][0]
    assert component["code"]["coding"][0]["code"] == "122157"
    assert component["valueQuantity"] == {
        "value": Decimal("0.9100"),
        "unit": "1",
        "system": "http://unitsofmeasure.org",
        "code": "1",
    }


def test_the_threshold_is_a_component():
    assert finding_of(build())["component"][1]["valueQuantity"]["value"] == Decimal("0.4000")


def test_the_finding_names_the_image_that_shows_it():
    assert finding_of(build())["component"][2]["valueString"] == f"{SERIES_UID}.2"


def test_the_finding_has_its_body_site():
    assert finding_of(build())["bodySite"]["coding"][0]["code"] == "12738006"


def test_the_study_observation_has_the_findings_as_members():
    resources = build()
    panel = of_type(resources, "Observation")[0]
    assert panel["hasMember"] == [{"reference": f"Observation/{finding_of(resources)['id']}"}]


@pytest.mark.parametrize("status", UNANSWERED)
def test_without_an_answer_the_report_is_cancelled(status):
    assert report_of(build(unanswered(status)))["status"] == "cancelled"


@pytest.mark.parametrize("status", UNANSWERED)
def test_without_an_answer_no_observation_has_a_value(status):
    for one in of_type(build(unanswered(status)), "Observation"):
        assert not [key for key in one if key.startswith("value")]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (AnalysisStatus.ABSTAINED, "unknown"),
        (AnalysisStatus.OUT_OF_SCOPE, "unsupported"),
        (AnalysisStatus.REFUSED, "error"),
    ],
)
def test_without_an_answer_observations_say_why(status, code):
    for one in of_type(build(unanswered(status)), "Observation"):
        assert one["dataAbsentReason"]["coding"][0]["code"] == code


@pytest.mark.parametrize("status", UNANSWERED)
def test_without_an_answer_the_conclusion_says_that_nothing_is_said(status):
    assert "This says nothing about any finding" in report_of(build(unanswered(status)))["conclusion"]


def test_a_model_that_gave_no_answer_is_named_for_each_finding():
    assert finding_of(build(unanswered(AnalysisStatus.ABSTAINED)))["code"]["coding"][0]["code"] == "126952004"


def test_without_a_model_there_is_no_device():
    assert of_type(build(unanswered(AnalysisStatus.OUT_OF_SCOPE)), "Device") == []


def test_unread_images_are_counted_in_the_conclusion():
    images = (*(instance(n) for n in range(9)), refused_instance())
    conclusion = report_of(build(analysed(instances=images)))["conclusion"]
    assert "Incomplete: 1 of 10 images could not be read (truncated_pixel_data: 1)." in conclusion


def test_several_series_are_named_with_the_highest_first():
    other = "1.2.3"
    images = (instance(1), instance(2, series_instance_uid=other))
    assert f"Series analysed: {SERIES_UID} (highest), {other}." in limits(analysed(instances=images))


def test_out_of_scope_images_are_counted():
    images = (instance(1), instance(2, AnalysisStatus.OUT_OF_SCOPE))
    assert any(
        sentence.startswith("1 of 2 images are outside") for sentence in limits(analysed(instances=images))
    )


def test_a_study_with_all_images_read_is_complete():
    assert incomplete([instance(1), instance(2)]) is None


def test_the_presented_form_has_the_hash_of_its_data():
    (form,) = report_of(build())["presentedForm"]
    data = base64.b64decode(form["data"])
    assert form["hash"] == base64.b64encode(hashlib.sha1(data).digest()).decode()
    assert form["size"] == len(data)


def test_foreign_text_is_escaped_in_the_presented_form():
    result = analysed()
    result = replace(result, findings=(replace(result.findings[0], display="<script>"),))
    resources = build_resources(reference(), result, manifest(), organization="x")
    page = base64.b64decode(report_of(resources)["presentedForm"][0]["data"])
    assert b"<script>" not in page


def test_other_weights_are_another_device():
    other = replace(analysed(), model=replace(MODEL, weights_sha256="ef" * 32))
    assert of_type(build(other), "Device")[0]["id"] != of_type(build(), "Device")[0]["id"]


def test_provenance_targets_all_results():
    resources = build()
    (provenance,) = of_type(resources, "Provenance")
    made = [*of_type(resources, "Observation"), report_of(resources)]
    assert {t["reference"] for t in provenance["target"]} == {f"{r['resourceType']}/{r['id']}" for r in made}


def test_provenance_names_the_images_that_the_model_saw():
    images = (instance(1), instance(2, AnalysisStatus.OUT_OF_SCOPE), refused_instance())
    (provenance,) = of_type(build(analysed(instances=images)), "Provenance")
    sources = [entity["what"] for entity in provenance["entity"] if entity["role"] == "source"]
    assert [what["identifier"]["value"] for what in sources[1:]] == [f"urn:oid:{SERIES_UID}.1"]


def test_provenance_names_the_model_card_that_the_device_holds():
    resources = build()
    (provenance,) = of_type(resources, "Provenance")
    (device,) = of_type(resources, "Device")
    (named,), (held,) = provenance["contained"], device["contained"]
    assert provenance["entity"][-1] == {"role": "derivation", "what": {"reference": f"#{named['id']}"}}
    assert named["context"]["related"] == [{"reference": f"Device/{device['id']}"}]
    told, whole = (card["content"][0]["attachment"] for card in (named, held))
    assert (told["hash"], told["size"], told["title"]) == (whole["hash"], whole["size"], whole["title"])
    assert "data" not in told


def test_the_same_result_has_the_same_ids_whenever_it_is_made():
    later = replace(analysed(), analysed_at=analysed().analysed_at.replace(year=2027), elapsed_ms=1.0)
    assert [one["id"] for one in build(later)] == [one["id"] for one in build()]


@pytest.mark.parametrize(
    "other",
    [
        build(analysed(0.5)),
        build(analysed(instances=(instance(1), instance(2), instance(3), refused_instance()))),
        build(patient_id="patient-2"),
        build(replace(analysed(), model=replace(MODEL, version="1.0.1"))),
    ],
    ids=["other answer", "other images", "other patient", "other model"],
)
def test_another_result_has_another_report_id(other):
    assert report_of(other)["id"] != report_of(build())["id"]


def test_every_entry_of_the_transaction_is_a_conditional_create():
    for entry in transaction(build())["entry"]:
        assert entry["request"]["method"] == "POST"
        assert len(parse_qsl(entry["request"]["ifNoneExist"], strict_parsing=True)) == 1


def test_a_provenance_is_found_again_by_its_tag():
    provenance = transaction(build())["entry"][-1]
    ((name, value),) = parse_qsl(provenance["request"]["ifNoneExist"])
    tag = provenance["resource"]["meta"]["tag"][0]
    assert (name, value) == ("_tag", f"{tag['system']}|{tag['code']}")


def test_no_entry_of_the_transaction_has_an_id():
    assert not any("id" in entry["resource"] for entry in transaction(build())["entry"])


def test_references_within_the_transaction_are_full_urls():
    bundle = transaction(build())
    full_urls = {entry["fullUrl"] for entry in bundle["entry"]}
    report = report_of([entry["resource"] for entry in bundle["entry"]])
    assert {one["reference"] for one in report["result"]} <= full_urls


def test_references_out_of_the_transaction_stay():
    report = report_of([entry["resource"] for entry in transaction(build())["entry"]])
    assert report["subject"]["reference"] == "Patient/patient-1"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("patient/Device.c patient/DiagnosticReport.c patient/Observation.c patient/Provenance.c", True),
        ("system/*.cruds", True),
        ("user/*.write", True),
        ("patient/*.rs", False),
        ("patient/Device.c patient/DiagnosticReport.c patient/Observation.c", False),
        ("patient/*.c?category=imaging", False),
        ("", False),
    ],
)
def test_writing_needs_create_on_every_type(scope, expected):
    assert may_write(ScopeSet.parse(scope)) is expected


def told(resource):
    """All the words of a resource, those of its attached page too."""
    pages = [base64.b64decode(form["data"]).decode() for form in resource.get("presentedForm", [])]
    return encode_json(resource).decode() + "".join(pages)


VALIDATED = replace(MODEL, experimental=False)
RESULTS = [
    analysed(),
    analysed(0.1),
    nothing_to_rate(),
    replace(unanswered(AnalysisStatus.ABSTAINED), model=MODEL),
]


@pytest.mark.parametrize("result", RESULTS, ids=["positive", "negative", "nothing to rate", "abstained"])
def test_every_resource_says_that_its_model_is_experimental(result):
    assert [one["resourceType"] for one in build(result) if EXPERIMENTAL not in told(one)] == []


def test_nothing_of_a_validated_model_says_experimental():
    for one in build(replace(analysed(), model=VALIDATED)):
        assert "experimental" not in told(one).lower()


def test_the_page_names_its_experimental_model_in_its_title():
    (form,) = report_of(build())["presentedForm"]
    assert "<h1>AI analysis of imaging (experimental)</h1>" in base64.b64decode(form["data"]).decode()


def test_an_answer_sentence_says_experimental():
    assert "at or above the experimental model's threshold" in report_of(build())["conclusion"]


def test_the_device_of_an_experimental_model_is_named_so():
    (device,) = of_type(build(), "Device")
    assert device["deviceName"][0]["name"] == "Tumour on axial FLAIR (experimental)"


def test_the_device_of_an_experimental_model_has_it_as_safety():
    (device,) = of_type(build(), "Device")
    assert [said["text"] for said in device["safety"]] == ["Investigational", "Experimental"]


@pytest.mark.parametrize(
    "other",
    [{"manifest_sha256": "12" * 32}, {"finder": replace(MODEL, id="finder")}],
    ids=["other manifest", "other finder"],
)
def test_other_files_are_another_device(other):
    changed = build(replace(analysed(), model=replace(MODEL, **other)))
    assert of_type(changed, "Device")[0]["id"] != of_type(build(), "Device")[0]["id"]


def test_the_device_has_the_digests_of_all_its_files():
    finder = replace(MODEL, id="finder", weights_sha256="34" * 32)
    model = replace(MODEL, manifest_sha256="12" * 32, finder=finder)
    (device,) = of_type(build(replace(analysed(), model=model)), "Device")
    versions = {one["type"]["text"]: one["value"] for one in device["version"]}
    assert (versions["manifest SHA-256"], versions["finder weights SHA-256"]) == ("12" * 32, "34" * 32)


def test_the_method_says_the_aggregation_in_words():
    method = finding_of(build())["method"]["text"]
    assert method.endswith(": the highest median over three neighbouring slices")


def test_nothing_to_rate_is_not_the_absence_of_a_finding():
    conclusion = report_of(build(nothing_to_rate()))["conclusion"]
    assert conclusion.startswith("Nothing was found to rate")
    assert "does not rule out what it looks for" in conclusion


def test_nothing_to_rate_makes_no_observation_of_a_finding():
    assert len(of_type(build(nothing_to_rate()), "Observation")) == 1


def test_a_report_of_nothing_to_rate_is_valid_r4():
    validate(transaction(build(nothing_to_rate())))
