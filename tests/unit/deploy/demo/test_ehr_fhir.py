import pytest

from rayhook.deploy.demo.ledger import read_ledger

REPORT = {
    "resourceType": "DiagnosticReport",
    "identifier": [{"system": "urn:test", "value": "1"}],
    "status": "preliminary",
    "code": {"text": "AI analysis of imaging"},
    "subject": {"reference": "Patient/one"},
}
OBSERVATION = {
    "resourceType": "Observation",
    "identifier": [{"system": "urn:test", "value": "2"}],
    "status": "preliminary",
    "code": {"text": "Impression"},
    "subject": {"reference": "Patient/one"},
    "valueString": "nothing marked",
}
WRITE = "patient/DiagnosticReport.cs patient/Observation.cs"


def matched(answer):
    assert answer.status_code == 200, answer.text
    return [
        entry["resource"] for entry in answer.json().get("entry", []) if entry["search"]["mode"] == "match"
    ]


def transaction(*resources):
    entries = [
        {
            "fullUrl": f"urn:uuid:{number}",
            "resource": resource,
            "request": {
                "method": "POST",
                "url": resource["resourceType"],
                "ifNoneExist": f"identifier=urn%3Atest%7C{resource['identifier'][0]['value']}",
            },
        }
        for number, resource in enumerate(resources)
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


@pytest.mark.parametrize("token", [None, "Bearer unknown", "Basic abc"])
def test_token_is_needed(ehr, token):
    answer = ehr.browser.get("/fhir/Patient/one", headers={"Authorization": token} if token else {})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_patient_is_read(ehr):
    assert ehr.fhir("/Patient/one").json()["name"][0]["text"] == "PHANTOM <one>"


def test_other_patients_are_not_found(ehr):
    assert ehr.fhir("/Patient/two").status_code == 404


def test_search_is_bound_to_the_tokens_patient(ehr):
    assert matched(ehr.fhir("/ImagingStudy?patient=two")) == []


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/Patient/one", "patient/ImagingStudy.rs"),
        ("/ImagingStudy?patient=one", "patient/ImagingStudy.r"),
        ("/ImagingStudy?patient=one", "patient/ImagingStudy.rs?modality=MR"),
    ],
)
def test_scope_is_needed(ehr, path, scope):
    assert ehr.fhir(path, scope=scope).status_code == 403


def test_studies_come_newest_first_with_their_endpoint(ehr):
    bundle = ehr.fhir("/ImagingStudy?patient=one&_sort=-started&_include=ImagingStudy:endpoint").json()
    modes = [entry["search"]["mode"] for entry in bundle["entry"]]
    started = [entry["resource"].get("started") for entry in bundle["entry"]]
    assert modes == ["match", "match", "include"]
    assert started[:2] == ["2026-06-01T10:00:00Z", "2026-05-01T10:00:00Z"]
    assert bundle["entry"][2]["resource"]["address"] == "http://127.0.0.1:8102/dicom-web"


def test_search_pages_follow_each_other(ehr):
    first = ehr.fhir("/ImagingStudy?patient=one&_count=1").json()
    following = next(link["url"] for link in first["link"] if link["relation"] == "next")
    second = ehr.fhir(following.removeprefix("http://127.0.0.1:8101/fhir")).json()
    assert first["entry"][0]["resource"]["id"] != second["entry"][0]["resource"]["id"]
    assert [link["relation"] for link in second["link"]] == ["self"]


def test_search_by_form(ehr):
    found = matched(ehr.fhir("/Patient/_search", method="POST", data={"identifier": "MRN-one"}))
    assert [one["id"] for one in found] == ["one"]


def test_unknown_parameter_is_refused(ehr):
    answer = ehr.fhir("/ImagingStudy?colour=red")
    assert (answer.status_code, answer.json()["resourceType"]) == (400, "OperationOutcome")


def test_created_report_is_found(ehr):
    created = ehr.fhir("/DiagnosticReport", method="POST", scope=WRITE, json=REPORT)
    assert created.status_code == 201
    assert [one["id"] for one in matched(ehr.fhir("/DiagnosticReport?patient=one"))] == [created.json()["id"]]


def test_conditional_create_creates_once(ehr):
    request = {
        "method": "POST",
        "scope": WRITE,
        "json": REPORT,
        "headers": {"If-None-Exist": "identifier=urn:test|1"},
    }
    answers = [ehr.fhir("/DiagnosticReport", **request) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_two_matches_of_a_condition_are_412(ehr):
    for _ in range(2):
        ehr.fhir("/DiagnosticReport", method="POST", scope=WRITE, json=REPORT)
    headers = {"If-None-Exist": "identifier=urn:test|1"}
    answer = ehr.fhir("/DiagnosticReport", method="POST", scope=WRITE, json=REPORT, headers=headers)
    assert answer.status_code == 412


def test_transaction_twice_writes_once_and_resolves_references(ehr):
    bundle = transaction({**REPORT, "result": [{"reference": "urn:uuid:1"}]}, OBSERVATION)
    for _ in range(2):
        assert ehr.fhir("", method="POST", scope=WRITE, json=bundle).status_code == 200
    report, observation = (
        matched(ehr.fhir(f"/{kind}?patient=one")) for kind in ("DiagnosticReport", "Observation")
    )
    assert (len(report), len(observation)) == (1, 1)
    assert report[0]["result"][0]["reference"] == f"Observation/{observation[0]['id']}"


@pytest.mark.parametrize(
    ("second", "status"),
    [
        ({**OBSERVATION, "status": "bogus"}, 400),
        ({**OBSERVATION, "subject": {"reference": "Patient/two"}}, 403),
        ({**OBSERVATION, "resourceType": "Patient"}, 403),
    ],
)
def test_transaction_is_all_or_nothing(ehr, second, status):
    answer = ehr.fhir("", method="POST", scope=WRITE, json=transaction(REPORT, second))
    assert answer.status_code == status
    assert matched(ehr.fhir("/DiagnosticReport?patient=one")) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"resourceType": "Bundle", "type": "batch"}'])
def test_bad_body_is_400(ehr, body):
    assert ehr.fhir("", method="POST", scope=WRITE, content=body).status_code == 400


def test_fault_status_answers_everything(ehr):
    ehr.demo.faults.fhir_status = 500
    assert ehr.fhir("/Patient/one").status_code == 500


def test_fault_wrong_patient_changes_the_subject(ehr):
    ehr.demo.faults.wrong_patient = True
    studies = matched(ehr.fhir("/ImagingStudy?patient=one"))
    assert {one["subject"]["reference"] for one in studies} == {"Patient/somebody-else"}


def test_fault_drip_sends_the_same_bytes_slowly(ehr):
    whole = ehr.fhir("/Patient/one").content
    ehr.demo.faults.drip_s = 0.0001
    assert ehr.fhir("/Patient/one").content == whole


REVISE = "patient/DiagnosticReport.crus patient/Observation.crus"


@pytest.fixture
def report(ehr):
    created = ehr.fhir("/DiagnosticReport", scope=REVISE, method="POST", json=REPORT)
    assert created.status_code == 201
    return created.json()


def put(ehr, resource, **headers):
    path = f"/{resource['resourceType']}/{resource['id']}"
    return ehr.fhir(path, scope=REVISE, method="PUT", json=resource, headers=headers)


def test_an_update_is_the_next_version(ehr, report):
    updated = put(ehr, report | {"status": "final"}, **{"If-Match": 'W/"1"'})
    assert (updated.status_code, updated.headers["etag"]) == (200, 'W/"2"')


def test_the_version_before_is_kept(ehr, report):
    put(ehr, report | {"status": "final"})
    first = ehr.fhir(f"/DiagnosticReport/{report['id']}/_history/1", scope=REVISE)
    assert first.json()["status"] == "preliminary"


def test_history_tells_all_versions_newest_first(ehr, report):
    put(ehr, report | {"status": "final"})
    bundle = ehr.fhir(f"/DiagnosticReport/{report['id']}/_history", scope=REVISE).json()
    assert [entry["resource"]["status"] for entry in bundle["entry"]] == ["final", "preliminary"]


def test_an_update_of_another_version_is_refused(ehr, report):
    assert put(ehr, report, **{"If-Match": 'W/"7"'}).status_code == 412


def test_an_update_needs_its_scope(ehr, report):
    path = f"/DiagnosticReport/{report['id']}"
    assert ehr.fhir(path, scope=WRITE, method="PUT", json=report).status_code == 403


def test_another_patients_report_cannot_be_replaced(ehr, report):
    taken = report | {"subject": {"reference": "Patient/two"}}
    path = f"/DiagnosticReport/{report['id']}"
    answer = ehr.fhir(path, scope=REVISE, patient="two", method="PUT", json=taken)
    assert answer.status_code == 404


def test_a_transaction_with_a_stale_update_changes_nothing(ehr, report):
    stale = {
        "resource": report | {"status": "final"},
        "request": {"method": "PUT", "url": f"DiagnosticReport/{report['id']}", "ifMatch": 'W/"9"'},
    }
    bundle = transaction(OBSERVATION)
    bundle["entry"].append(stale)
    answer = ehr.fhir("", scope=REVISE, method="POST", json=bundle)
    found = ehr.fhir("/Observation?patient=one&identifier=urn:test|2", scope=REVISE)
    assert (answer.status_code, matched(found)) == (412, [])


def test_what_was_created_and_what_was_there_is_in_the_ledger(ehr, tmp_path):
    for _ in range(2):
        ehr.fhir("", method="POST", scope=WRITE, json=transaction(REPORT), headers={"X-Request-Id": "r1"})
    found = [
        (e.outcome, e.what, e.identifier, e.subject, e.conditional, e.request_id)
        for e in read_ledger(tmp_path / "ledger.jsonl")
    ]
    assert found == [
        (outcome, "DiagnosticReport", "1", "Patient/one", True, "r1") for outcome in ("created", "existing")
    ]


def test_an_unconditional_create_is_in_the_ledger_as_one(ehr, tmp_path):
    ehr.fhir("/Observation", method="POST", scope=WRITE, json=OBSERVATION)
    (entry,) = read_ledger(tmp_path / "ledger.jsonl")
    assert (entry.what, entry.conditional) == ("Observation", False)
