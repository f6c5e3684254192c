import httpx
import pytest

READ = "patient/DiagnosticReport.rs patient/Observation.rs patient/Device.rs patient/Provenance.rs"


@pytest.fixture
def ask(world):
    """Ask our FHIR endpoint with a token of the EHR."""

    def ask(path, *, patient="phantom-a", scope=READ, token=None):
        token = token or world.ehr.authorization.issue(patient, scope)
        return httpx.get(
            f"{world.base_url}/fhir/R4/{path}", headers={"Authorization": f"Bearer {token}"}, timeout=20
        )

    return ask


def entries(answer):
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", [])]


def test_metadata_is_open(world):
    answer = httpx.get(f"{world.base_url}/fhir/R4/metadata").json()
    assert (answer["resourceType"], answer["fhirVersion"]) == ("CapabilityStatement", "4.0.1")


@pytest.mark.parametrize("resource_type", ["DiagnosticReport", "Observation", "Device", "Provenance"])
def test_each_type_is_searched_and_read(world, ask, resource_type):
    world.store("phantom-a")
    found = entries(ask(resource_type))
    assert found
    read = ask(f"{resource_type}/{found[0]['id']}")
    assert read.json() == found[0]


def test_search_finds_the_bound_patient_only(world, ask):
    world.store("phantom-b")
    assert entries(ask("DiagnosticReport")) == []


def test_read_of_another_patients_report_is_not_found(world, ask):
    world.store("phantom-b")
    report = entries(ask("DiagnosticReport", patient="phantom-b"))[0]
    assert ask(f"DiagnosticReport/{report['id']}").status_code == 404


def test_references_to_the_ehr_are_absolute(world, ask):
    world.store("phantom-a")
    report = entries(ask("DiagnosticReport"))[0]
    assert report["subject"]["reference"] == f"{world.ehr_url}/fhir/Patient/phantom-a"


def test_references_among_results_stay_here(world, ask):
    world.store("phantom-a")
    reference = entries(ask("DiagnosticReport"))[0]["result"][0]["reference"]
    assert ask(reference).status_code == 200


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("patient=phantom-a", True),
        ("patient=Patient/phantom-a", True),
        ("based-on=ServiceRequest/order-1", True),
        ("based-on=order-1", True),
        ("based-on=other", False),
        ("_id=unknown", False),
        ("identifier=urn:rayhook:other|x", False),
        ("identifier={identifier}", True),
    ],
)
def test_search_parameters(world, ask, query, found):
    world.store("phantom-a")
    identifier = entries(ask("DiagnosticReport"))[0]["identifier"][0]
    query = query.format(identifier=f"{identifier['system']}|{identifier['value']}")
    assert bool(entries(ask(f"DiagnosticReport?{query}"))) is found


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("DiagnosticReport?patient=phantom-b", 403),
        ("DiagnosticReport?colour=1", 400),
        ("DiagnosticReport?_count=-1", 400),
        ("DiagnosticReport?_count=x", 400),
        ("Patient", 404),
        ("Patient/phantom-a", 404),
        ("DiagnosticReport/unknown", 404),
    ],
)
def test_refusals_are_operation_outcomes(ask, path, status):
    answer = ask(path)
    assert answer.status_code == status
    assert answer.json()["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize("scope", ["patient/Observation.rs", "patient/DiagnosticReport.c"])
def test_scope_is_needed(world, ask, scope):
    assert ask("DiagnosticReport", scope=scope).status_code == 403
    assert world.kinds()[0] == "smart_app:access:denied"


@pytest.mark.parametrize("scope", ["patient/DiagnosticReport.read", "patient/*.rs"])
def test_scopes_of_either_version_are_read(ask, scope):
    assert ask("DiagnosticReport", scope=scope).status_code == 200


@pytest.mark.parametrize("token", ["unknown", "a.b.c", "x" * 40])
def test_unknown_token_is_a_bare_401(world, ask, token):
    answer = ask("DiagnosticReport", token=token)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert world.kinds()[0] == "smart_app:access:denied"


def test_no_token_is_401(world):
    assert httpx.get(f"{world.base_url}/fhir/R4/DiagnosticReport").status_code == 401


def test_session_cookie_reads_too(world):
    world.store("phantom-a")
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        answer = browser.get(
            f"{world.base_url}/fhir/R4/DiagnosticReport", headers={"Accept": "application/fhir+json"}
        )
    assert len(entries(answer)) == 1


def test_pages_follow_each_other(world, ask):
    for number in range(3):
        world.store("phantom-a", study=f"1.2.3.2{number}")
    first = ask("DiagnosticReport?_count=2").json()
    link = next(link["url"] for link in first["link"] if link["relation"] == "next")
    second = entries(ask(link.removeprefix(f"{world.base_url}/fhir/R4/")))
    assert (first["total"], len(first["entry"]), len(second)) == (3, 2, 1)


@pytest.mark.parametrize(
    ("path", "kind"), [("DiagnosticReport", "searched"), ("DiagnosticReport/{id}", "read")]
)
def test_what_came_back_is_audited(world, ask, path, kind):
    world.store("phantom-a")
    report = entries(ask("DiagnosticReport"))[0]
    ask(path.format(id=report["id"]))
    event = world.audited()[0]
    assert str(event.kind) == f"smart_app:fhir:{kind}"
    assert event.entities == (f"DiagnosticReport/{report['id']}",)


def test_nothing_is_read_when_the_audit_cannot_be_written(world, ask):
    world.store("phantom-a")
    with world.audit_is_full():
        assert ask("DiagnosticReport").status_code == 503
