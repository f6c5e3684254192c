"""Searches, pages, versions and forms of our FHIR API, over loopback, each answer before validators not ours."""

import json
from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from rayhook.deploy.demo.ehr_tokens import Grant
from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.fhir.errors import InvalidRequest
from rayhook.inference.answers import Person
from rayhook.inference.dicom_table import ObjectNames, StoreState, begin, end
from rayhook.inference.dicom_uid import ObjectKind
from rayhook.inference.jobs import load_result
from rayhook.inference.signature import Act, SignAct, add_signature
from rayhook.smart_app.fhir_api import describe_server
from rayhook.smart_app.fhir_parameters import INCLUDES, PARAMETERS, REVINCLUDES
from rayhook.smart_app.fhir_search import open_cursor, parse_search, seal_cursor
from tests.unit.smart_app.conftest import study_result

READ = " ".join(f"patient/{kind}.rs" for kind in PARAMETERS)
SYSTEM = READ.replace("patient/", "system/")
OBSERVED = "http://terminology.hl7.org/CodeSystem/observation-category"


@pytest.fixture
def issue(world):
    """Return a token of the EHR's practitioner, or without `patient` of a system."""

    def issue(scope=READ, *, patient="phantom-a", user="Practitioner/demo"):
        grant = Grant(patient, scope, user=user)
        return world.ehr.authorization.tokens.issue(grant)

    return issue


@pytest.fixture
def ask(world, issue):
    def ask(path, *, token=None, method="GET", **request):
        headers = {"Authorization": f"Bearer {token or issue()}", **request.pop("headers", {})}
        return httpx.request(
            method, f"{world.base_url}/fhir/R4/{path}", headers=headers, timeout=20, **request
        )

    return ask


def resources(answer, mode="match"):
    assert answer.status_code == 200, answer.text
    return [one["resource"] for one in answer.json().get("entry", []) if one["search"]["mode"] == mode]


def sign(world, result_id, act=SignAct.SIGN, status=DiagnosticReportStatus.FINAL):
    """Store a signature: the report as its next version."""
    with world.database.sessions() as session:
        stored = load_result(session, world.keyring, result_id)
        (report,) = [one for one in stored.resources if one["resourceType"] == "DiagnosticReport"]
        act = Act(
            act=act,
            status=status,
            by=Person(fhir_user="Practitioner/demo", name="Dr Demo"),
            answers="",
        )
        signed = {**report, "status": status.value}
        add_signature(
            session, world.keyring, stored, act, [signed], version=2, authorization=None, clock=world.clock
        )
        session.commit()
    return report["id"]


CASES = {
    "Device": [
        ("device-name", "Brain MRI", "CT"),
        ("device-name:contains", "flair", "ct lung"),
        ("identifier", "urn:rayhook:model|", "urn:rayhook:other|"),
        ("manufacturer", "The Rayhook", "Other"),
        ("model", "mri-flair-lesion", "ct-lung"),
        ("patient", "phantom-a", None),
        ("status", "active", "inactive"),
        ("type", "Artificial-Intelligence", "86967005"),
    ],
    "DiagnosticReport": [
        ("based-on", "ServiceRequest/order-1", "ServiceRequest/order-2"),
        ("based-on", "order-1", "order-2"),
        ("category", "RAD", "LAB"),
        ("category", "http://loinc.org|LP29684-5", "http://loinc.org|RAD"),
        ("code", "18748-4", "18748"),
        ("conclusion", "http://snomed.info/sct|4147007", "http://snomed.info/sct|1"),
        ("date", "2026-05-01", "2026-05-02"),
        ("date", "ge2026", "gt2026"),
        ("identifier", "urn:rayhook:result|", "urn:other|"),
        ("issued", "2026-05-01T10:05:00.000Z", "lt2026-05-01"),
        ("patient", "Patient/phantom-a", None),
        ("result:missing", "false", "true"),
        ("status", "preliminary", "final"),
        ("status", "final,preliminary", "final,amended"),
        ("status:not", "final", "preliminary"),
        ("subject:Patient", "phantom-a", None),
        ("_lastUpdated", "gt2020-01-01", "lt2020-01-01"),
    ],
    "DocumentReference": [
        ("category", "LP29684-5", "RAD"),
        ("contenttype", "application/dicom", "text/html"),
        ("date", "2026-05-01", "2025"),
        ("format", "urn:oid:1.2.840.10008.5.1.4.1.1.88.34", "urn:oid:1.2.840.10008.5.1.4.1.1.7"),
        ("identifier", "urn:rayhook:result|", "urn:other|"),
        ("patient", "phantom-a", None),
        ("related", "ImagingStudy/study-1", "ImagingStudy/study-2"),
        ("status", "current", "superseded"),
        ("subject", "phantom-a", None),
        ("type", "http://loinc.org|18748-4", "http://loinc.org|1"),
    ],
    "ImagingStudy": [
        ("basedon", "order-1", "order-2"),
        ("identifier", "urn:dicom:uid|urn:oid:1.2.3.9", "urn:dicom:uid|urn:oid:1.2.3.8"),
        ("modality", "MR", "CT"),
        ("patient", "phantom-a", None),
        ("series", "1.2.3.4", "1.2.3.5"),
        ("started", "2026-05-01", "lt2026-05-01"),
        ("status", "available", "registered"),
        ("subject", "phantom-a", None),
    ],
    "Observation": [
        ("based-on", "order-1", "order-2"),
        ("category", f"{OBSERVED}|imaging", f"{OBSERVED}|laboratory"),
        ("code", "http://snomed.info/sct|4147007", "http://loinc.org|4147007"),
        ("date", "le2026-05", "sa2026-05"),
        ("derived-from", "ImagingStudy/study-1", "ImagingStudy/study-2"),
        ("has-member:missing", "false", None),
        ("identifier", "urn:rayhook:result|", "urn:other|"),
        ("part-of", "study-1", "study-2"),
        ("patient", "phantom-a", None),
        ("status", "preliminary", "final"),
        ("subject", "phantom-a", None),
        ("value-concept", "10828004", "260385009"),
        ("device:missing", "false", "true"),
    ],
    "Provenance": [
        ("agent:missing", "false", "true"),
        ("entity", "ImagingStudy/study-1", "ImagingStudy/study-2"),
        ("patient", "phantom-a", None),
        ("recorded", "2026", "2025"),
        ("target:missing", "false", "true"),
    ],
}
FLAT = [(kind, *case) for kind, cases in CASES.items() for case in cases]


def link_object(world, result_id):
    """Store what the PACS would have: one structured report of the result."""
    names = ObjectNames(
        "1.2.840.10008.5.1.4.1.1.88.34", "1.2.9.1", "1.2.9", "1.2.3.9", "http://127.0.0.1:9/dicom-web"
    )
    with world.database.sessions() as session:
        rows = begin(session, world.keyring, result_id, [(ObjectKind.SR.value, names)], ehr_id="demo-ehr")
        for row_id in rows.values():
            end(session, row_id, StoreState.STORED, None)
        session.commit()


class TestParameters:
    """Every search parameter finds what has it, and does not find what has not."""

    @pytest.fixture(autouse=True)
    def stored(self, world):
        link_object(world, world.store("phantom-a"))

    @pytest.mark.parametrize(("kind", "name", "value", "other"), FLAT)
    def test_it_finds(self, ask, kind, name, value, other):
        assert resources(ask(kind, params={name: value}))

    @pytest.mark.parametrize(("kind", "name", "value", "other"), [case for case in FLAT if case[3]])
    def test_it_does_not_find(self, ask, kind, name, value, other):
        assert resources(ask(kind, params={name: other})) == []

    def test_references_between_results_are_parameters_too(self, ask):
        (report,) = resources(ask("DiagnosticReport"))
        study, finding = (one["reference"] for one in report["result"])
        (device,) = resources(ask("Device"))
        found = {
            "DiagnosticReport?result": finding,
            "Observation?has-member": finding,
            "Observation?device": f"Device/{device['id']}",
            "Provenance?target": f"DiagnosticReport/{report['id']}",
            "Provenance?agent": device["id"],
            "Observation?_id": study.removeprefix("Observation/"),
        }
        for path, value in found.items():
            assert resources(ask(f"{path}={value}")), path
            assert resources(ask(f"{path}=none")) == [], path

    def test_every_parameter_was_asked_for(self):
        tested = {(kind, name.partition(":")[0]) for kind, name, *_ in FLAT}
        tested |= {(kind, name) for kind in PARAMETERS for name in ("_id", "_lastUpdated")}
        assert tested == {(kind, name) for kind, names in PARAMETERS.items() for name in names}

    @pytest.mark.parametrize("kind", sorted(PARAMETERS))
    def test_a_search_by_post_is_one_by_get(self, ask, kind):
        got = [one["id"] for one in resources(ask(kind))]
        posted = ask(f"{kind}/_search", method="POST", data={"patient": "phantom-a"})
        assert [one["id"] for one in resources(posted)] == got

    def test_a_search_by_post_is_a_form(self, ask):
        assert ask("Device/_search", method="POST", json={}).status_code == 415

    @pytest.mark.parametrize(
        "query",
        [
            "status:above=final",
            "date=yesterday",
            "date=2026-02-30",
            "status=",
            "code:missing=maybe",
            "_count=many",
            "_sort=code",
            "_total=some",
            "_summary=true",
            "_include=DiagnosticReport:subject",
            "_revinclude=Provenance:agent",
            "patient=phantom-a&subject=phantom-b",
            "_cursor=abc",
            "_has:Provenance:target:agent=1",
            "subject.name=x",
        ],
    )
    def test_what_is_not_understood_is_refused_and_said(self, ask, judges, query):
        answer = ask(f"DiagnosticReport?{query}")
        assert answer.status_code == 400
        assert judges.errors(answer.json()) == []

    def test_leniently_what_is_not_known_is_left_out_and_told(self, ask, judges):
        answer = ask("DiagnosticReport?colour=red", headers={"Prefer": "handling=lenient"})
        assert (len(resources(answer)), len(resources(answer, "outcome"))) == (1, 1)
        assert "colour" not in answer.json()["link"][0]["url"]
        assert judges.errors(answer.json()) == []

    def test_strictly_it_is_refused(self, ask):
        assert ask("DiagnosticReport?colour=red", headers={"Prefer": "handling=strict"}).status_code == 400

    @pytest.mark.parametrize(("query", "total"), [("_total=none", None), ("_total=accurate", 1), ("", 1)])
    def test_the_total_is_told_unless_it_is_not_wanted(self, ask, query, total):
        assert ask(f"DiagnosticReport?{query}").json().get("total") == total

    @pytest.mark.parametrize("query", ["_count=0", "_summary=count"])
    def test_counting_shows_nothing(self, ask, query):
        answer = ask(f"DiagnosticReport?{query}").json()
        assert (answer["total"], "entry" in answer) == (1, False)

    @pytest.mark.parametrize(
        ("query", "kinds"),
        [
            ("DiagnosticReport?_include=DiagnosticReport:result", ["Observation", "Observation"]),
            ("DiagnosticReport?_revinclude=Provenance:target", ["Provenance"]),
            ("Observation?_include=Observation:device", ["Device"]),
            ("Observation?_revinclude=DiagnosticReport:result", ["DiagnosticReport"]),
            ("Device?_revinclude=Observation:device", ["Observation", "Observation"]),
            ("Provenance?_include=Provenance:agent", ["Device"]),
            (
                "Provenance?_include=Provenance:target&_include=Provenance:agent",
                ["Device", "DiagnosticReport", "Observation", "Observation"],
            ),
        ],
    )
    def test_others_come_along(self, ask, judges, query, kinds):
        answer = ask(query)
        assert sorted(one["resourceType"] for one in resources(answer, "include")) == kinds
        assert judges.errors(answer.json()) == []

    def test_nothing_comes_along_that_the_scope_does_not_allow(self, ask, issue):
        token = issue("patient/DiagnosticReport.rs")
        answer = ask("DiagnosticReport?_revinclude=Provenance:target", token=token)
        assert resources(answer, "include") == []

    @pytest.mark.parametrize("kind", sorted(PARAMETERS))
    def test_answers_are_valid(self, ask, judges, kind):
        answer = ask(kind).json()
        assert judges.errors(answer) == []
        one = answer["entry"][0]["resource"]
        assert judges.errors(ask(f"{kind}/{one['id']}").json()) == []


class TestPages:
    @pytest.fixture(autouse=True)
    def stored(self, world):
        for number in range(5):
            world.store("phantom-a", study=f"1.2.3.2{number}")

    def follow(self, ask, answer, relation, token):
        (url,) = [link["url"] for link in answer.json()["link"] if link["relation"] == relation]
        parts = urlsplit(url)
        return ask(f"{parts.path.rpartition('/')[2]}?{parts.query}", token=token)

    def test_pages_together_are_the_whole(self, ask, issue):
        token = issue()
        first = ask("DiagnosticReport?_count=2", token=token)
        second = self.follow(ask, first, "next", token)
        third = self.follow(ask, second, "next", token)
        pages = [[one["id"] for one in resources(page)] for page in (first, second, third)]
        assert [len(page) for page in pages] == [2, 2, 1]
        assert [*pages[0], *pages[1], *pages[2]] == [
            one["id"] for one in resources(ask("DiagnosticReport", token=token))
        ]
        back = self.follow(ask, second, "previous", token)
        assert [one["id"] for one in resources(back)] == pages[0]

    def test_a_page_keeps_filters_and_order(self, ask, issue):
        token = issue()
        first = ask("DiagnosticReport?_count=2&status=preliminary&_sort=_lastUpdated", token=token)
        second = self.follow(ask, first, "next", token)
        stamps = [one["meta"]["lastUpdated"] for one in resources(first) + resources(second)]
        assert stamps == sorted(stamps)
        assert dict(parse_qsl(urlsplit(second.json()["link"][0]["url"]).query))["status"] == "preliminary"

    def test_what_comes_later_moves_nothing(self, ask, issue, world):
        token = issue()
        first = ask("DiagnosticReport?_count=2", token=token)
        world.store("phantom-a", study="1.2.3.99")
        second = self.follow(ask, first, "next", token)
        assert not {one["id"] for one in resources(first)} & {one["id"] for one in resources(second)}
        assert second.json()["total"] == 5

    def test_nothing_of_a_patient_is_in_the_link_onward(self, ask):
        answer = ask("DiagnosticReport?_count=2&patient=phantom-a")
        (url,) = [link["url"] for link in answer.json()["link"] if link["relation"] == "next"]
        assert "phantom" not in url
        assert [name for name, _ in parse_qsl(urlsplit(url).query)] == ["_cursor"]

    def test_a_page_is_its_callers_alone(self, ask, issue):
        first = ask("DiagnosticReport?_count=2", token=issue())
        other = issue(patient="phantom-b")
        assert self.follow(ask, first, "next", other).status_code == 400

    def test_a_page_has_its_time(self, world):
        search = parse_search("Device", [], as_of=1000.0)
        cursor = seal_cursor(world.keyring, search, offset=2, holder="me")
        how = {"resource_type": "Device", "holder": "me"}
        assert open_cursor(world.keyring, cursor, now=4600.0, **how).offset == 2
        with pytest.raises(InvalidRequest) as refusal:
            open_cursor(world.keyring, cursor, now=4601.0, **how)
        assert refusal.value.code == "cursor_expired"

    def test_a_page_is_of_its_type(self, world):
        cursor = seal_cursor(world.keyring, parse_search("Device", [], as_of=0.0), offset=2, holder="me")
        with pytest.raises(InvalidRequest):
            open_cursor(world.keyring, cursor, resource_type="Observation", holder="me", now=0.0)


class TestVersions:
    def test_a_signature_is_a_new_version_and_the_old_one_stays(self, world, ask, judges):
        report_id = sign(world, world.store("phantom-a"))
        now = ask(f"DiagnosticReport/{report_id}")
        first = ask(f"DiagnosticReport/{report_id}/_history/1")
        second = ask(f"DiagnosticReport/{report_id}/_history/2")
        assert [one.json()["status"] for one in (now, first, second)] == ["final", "preliminary", "final"]
        assert [one.headers["etag"] for one in (now, first, second)] == ['W/"2"', 'W/"1"', 'W/"2"']
        assert now.json()["meta"]["versionId"] == "2"
        assert judges.errors(first.json()) == []

    def test_a_version_that_never_was_is_not_found(self, world, ask):
        report_id = sign(world, world.store("phantom-a"))
        assert ask(f"DiagnosticReport/{report_id}/_history/3").status_code == 404

    def test_a_link_to_a_dicom_object_ends_with_its_report(self, world, ask, judges):
        result_id = world.store("phantom-a")
        link_object(world, result_id)
        sign(world, result_id, SignAct.WITHDRAW, DiagnosticReportStatus.CANCELLED)
        (link,) = resources(ask("DocumentReference"))
        first = ask(f"DocumentReference/{link['id']}/_history/1").json()
        assert (first["status"], link["status"], link["meta"]["versionId"]) == (
            "current",
            "entered-in-error",
            "2",
        )
        assert judges.errors(link) == []

    def test_a_search_finds_the_newest_version_alone(self, world, ask):
        sign(world, world.store("phantom-a"))
        assert [one["status"] for one in resources(ask("DiagnosticReport"))] == ["final"]
        assert resources(ask("DiagnosticReport?status=preliminary")) == []

    @pytest.mark.parametrize(
        ("tag", "status"), [('W/"1"', 304), ('W/"2", W/"1"', 304), ("*", 304), ('W/"2"', 200)]
    )
    def test_what_the_caller_has_is_not_sent_again(self, world, ask, tag, status):
        world.store("phantom-a")
        (report,) = resources(ask("DiagnosticReport"))
        answer = ask(f"DiagnosticReport/{report['id']}", headers={"If-None-Match": tag})
        assert (answer.status_code, bool(answer.content)) == (status, status == 200)


class TestForm:
    @pytest.mark.parametrize(
        ("accept", "status"),
        [
            ("application/fhir+json", 200),
            ("application/fhir+json; fhirVersion=4.0", 200),
            ("application/fhir+json;fhirVersion=3.0", 406),
            ("application/json", 200),
            ("text/json", 200),
            ("*/*", 200),
            ("application/fhir+xml", 406),
            ("text/html", 406),
            ("text/html, application/fhir+json;q=0.5", 200),
            ("application/fhir+json;q=0", 406),
            ("application/fhir+xml, */*;q=0.1", 200),
        ],
    )
    def test_accept(self, ask, accept, status):
        assert ask("Device", headers={"Accept": accept}).status_code == status

    @pytest.mark.parametrize(
        ("given", "status"),
        [
            ("json", 200),
            ("application/json", 200),
            ("application%2Ffhir%2Bjson", 200),
            ("application/fhir+json", 200),
            ("application/fhir+json;fhirVersion=4.0", 200),
            ("xml", 406),
            ("html", 406),
        ],
    )
    def test_format_overrides_accept(self, ask, given, status):
        assert ask(f"Device?_format={given}", headers={"Accept": "text/html"}).status_code == status

    @pytest.mark.parametrize("path", ["metadata", "Device", "Device/none"])
    def test_answers_say_what_they_are(self, ask, path):
        assert ask(path).headers["content-type"] == "application/fhir+json"

    @pytest.mark.parametrize(
        ("method", "path"),
        [("PUT", "Device/1"), ("DELETE", "Device/1"), ("POST", "Device"), ("PATCH", "Device/1")],
    )
    def test_nothing_is_written_here(self, ask, method, path):
        answer = ask(path, method=method)
        assert (answer.status_code, answer.json()["resourceType"]) == (405, "OperationOutcome")

    def test_decimals_keep_their_zeros(self, world, ask):
        world.store("phantom-a", probability=0.5)
        assert '"valueDecimal":0.5000' in ask("Observation").text


class TestStatement:
    def test_it_is_valid_and_says_what_is_served(self, ask, judges, world):
        statement = ask("metadata").json()
        assert judges.errors(statement) == []
        told = {one["type"]: one for one in statement["rest"][0]["resource"]}
        assert set(told) == {*PARAMETERS, "AuditEvent"}
        for kind, parameters in PARAMETERS.items():
            assert {(p["name"], p["type"]) for p in told[kind]["searchParam"]} == {
                (name, one.kind.value) for name, one in parameters.items()
            }
            assert tuple(told[kind].get("searchInclude", ())) == INCLUDES.get(kind, ())
            assert tuple(told[kind].get("searchRevInclude", ())) == REVINCLUDES.get(kind, ())

    def test_each_parameter_is_one_of_r4(self, judges):
        known = set()
        for path in judges.packages[0].glob("SearchParameter-*.json"):
            one = json.loads(path.read_bytes())
            known |= {(base, one["code"], one["type"]) for base in one.get("base", [])}
        for resource in describe_server("https://x").resources:
            for name, parameter in resource.parameters.items():
                where = {resource.type, "Resource", "DomainResource"}
                assert any((base, name, parameter.kind) in known for base in where), (resource.type, name)

    def test_whose_tokens_are_taken_is_told(self, world):
        answer = httpx.get(f"{world.base_url}/.well-known/oauth-protected-resource/fhir/R4").json()
        assert answer["resource"] == f"{world.base_url}/fhir/R4"
        assert answer["authorization_servers"] == [f"{world.ehr_url}/fhir"]


class TestScopes:
    @pytest.fixture(autouse=True)
    def stored(self, world):
        world.store("phantom-a")
        world.store("phantom-b", study="1.2.3.8")

    @pytest.mark.parametrize(
        ("scope", "status"),
        [
            ("patient/Observation.rs", 200),
            ("patient/Observation.s", 200),
            ("patient/Observation.r", 403),
            ("patient/Observation.cud", 403),
            ("patient/Observation.read", 200),
            ("patient/Observation.*", 200),
            ("patient/Observation.write", 403),
            ("patient/*.rs", 200),
            ("patient/*.cruds", 200),
            ("user/Observation.rs", 200),
            ("system/Observation.rs", 200),
            ("patient/DiagnosticReport.rs", 403),
            ("patient/Observation.sr", 403),
            ("launch openid", 403),
            (f"patient/Observation.rs?category={OBSERVED}|imaging", 200),
            ("patient/Observation.rs?colour=red", 403),
            ("patient/Observation.rs?patient=phantom-b", 403),
        ],
    )
    def test_each_form_of_scope(self, ask, issue, scope, status):
        assert ask("Observation", token=issue(scope)).status_code == status

    @pytest.mark.parametrize(
        ("limit", "count"),
        [("category=imaging", 2), ("category=laboratory", 0), ("code=121073", 1), ("status=final", 0)],
    )
    def test_a_limited_scope_shows_what_its_query_finds(self, ask, issue, limit, count):
        token = issue(f"patient/Observation.rs?{limit}")
        assert len(resources(ask("Observation", token=token))) == count

    def test_a_limited_scope_limits_reads_too(self, ask, issue):
        (panel,) = resources(ask("Observation?code=121073"))
        limited = issue("patient/Observation.rs?code=4147007")
        assert ask(f"Observation/{panel['id']}", token=limited).status_code == 404

    def test_a_refusal_names_the_lack_of_scope_and_is_audited(self, ask, issue, world):
        answer = ask("Observation", token=issue("patient/DiagnosticReport.rs"))
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
        assert world.kinds()[0] == "smart_app:access:denied"

    def test_an_invalid_token_is_said_to_be_one_and_no_more(self, ask):
        answer = ask("Observation", token="nobodys")
        assert answer.headers["www-authenticate"] == 'Bearer realm="fhir", error="invalid_token"'

    def test_without_a_token_no_error_is_named(self, world):
        answer = httpx.get(f"{world.base_url}/fhir/R4/Observation")
        assert answer.headers["www-authenticate"] == 'Bearer realm="fhir"'

    def test_a_token_is_introspected_once(self, ask, issue, world, monkeypatch):
        asked = []
        server = type(world.ehr.authorization)
        original = server.introspect
        monkeypatch.setattr(server, "introspect", lambda self, form: asked.append(1) or original(self, form))
        token = issue()
        for _ in range(3):
            ask("Observation", token=token)
        assert len(asked) == 1

    def test_a_person_without_a_patient_sees_nobody(self, ask, issue):
        token = issue("user/Observation.rs system/Observation.rs", patient=None)
        assert ask("Observation?patient=phantom-a", token=token).status_code == 403

    def test_a_system_names_the_patient(self, ask, issue, world):
        token = issue(SYSTEM, patient=None, user=None)
        assert ask("Observation", token=token).status_code == 400
        found = resources(ask("Observation?patient=phantom-b", token=token))
        assert {one["subject"]["reference"] for one in found} == {f"{world.ehr_url}/fhir/Patient/phantom-b"}
        assert world.audited()[0].patient_id == "phantom-b"

    def test_a_system_reads_by_id_beside_the_patient(self, ask, issue):
        token = issue(SYSTEM, patient=None, user=None)
        (report,) = resources(ask("DiagnosticReport?patient=phantom-b", token=token))
        path = f"DiagnosticReport/{report['id']}"
        statuses = [
            ask(f"{path}{query}", token=token).status_code
            for query in ("?patient=phantom-b", "?patient=phantom-a", "")
        ]
        assert statuses == [200, 404, 400]

    @pytest.mark.parametrize("scope", ["patient/Observation.rs", "user/Observation.rs"])
    def test_a_system_needs_scopes_of_its_own(self, ask, issue, scope):
        token = issue(scope, patient=None, user=None)
        assert ask("Observation?patient=phantom-a", token=token).status_code == 403

    def test_a_token_of_one_ehr_sees_nothing_of_another(self, ask, issue, world):
        with world.database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE analysis_result SET ehr_id = 'other'")
            connection.exec_driver_sql("DELETE FROM analysis_job WHERE result_id IS NULL")
        foreign = replace(world.reference("phantom-c", study="1.2.3.7"), ehr_id="other")
        store_of(world, foreign)
        token = issue(READ, patient="phantom-c")
        assert [ask(kind, token=token).json()["total"] for kind in PARAMETERS] == [0] * len(PARAMETERS)


def store_of(world, reference):
    from rayhook.inference import jobs
    from rayhook.inference.report import build_resources
    from tests.unit.smart_app.conftest import MANIFEST, MODEL

    result = study_result(reference.study_instance_uid)
    with world.database.sessions() as session:
        key = jobs.job_key(reference, [MODEL])
        row, _ = jobs.enqueue(session, world.keyring, reference, None, key=key, request_id="test")
        claimed = jobs.claim(session, world.keyring, row.id, lease_s=60)
        resources = build_resources(reference, result, MANIFEST, organization="Test site")
        jobs.complete(session, world.keyring, claimed, result, resources)
        session.commit()
