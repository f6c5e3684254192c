from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ledger import Act, Entry, LedgerFile, read_ledger
from rayhook.deploy.demo.pacs import Faults, create_pacs
from rayhook.deploy.demo.run import serving
from rayhook.fhir.errors import IdentityConflict, NotFound, RayhookError, UpstreamError, UpstreamRefused
from rayhook.fhir.transport import Transport
from rayhook.inference.decode import Decoder
from rayhook.inference.dicomweb import RetrievalLimits, retrieve_study
from tests.doubles.dicom_files import STUDY, dataset, encode, picture
from tests.ports import free_url
from tests.unit.inference.samples import reference

OTHER = f"{STUDY}.77"
TOKEN = "good"


def study(folder: Path, uid: str) -> DemoStudy:
    instances = []
    for number in (1, 2):
        made = dataset(
            picture(seed=number),
            StudyInstanceUID=uid,
            SeriesInstanceUID=f"{uid}.1",
            SOPInstanceUID=f"{uid}.1.{number}",
            PatientName="PHANTOM^PACS",
        )
        path = folder / f"{uid}.{number}.dcm"
        path.write_bytes(encode(made))
        instances.append(DemoInstance(path, f"{uid}.1.{number}", str(made.SOPClassUID), f"{uid}.1"))
    return DemoStudy("p", "P", "P1", uid, "MR", "d", "BRAIN", "2026-01-01T00:00:00Z", True, tuple(instances))


class RunningPACS:
    def __init__(self, origin: str, faults: Faults, ledger: Path) -> None:
        self.origin, self.faults, self.ledger = origin, faults, ledger
        self.transport = Transport(allow_loopback_http=True)
        self.browser = httpx.Client(
            base_url=f"{origin}/dicom-web", headers={"Authorization": f"Bearer {TOKEN}"}
        )

    def retrieve(self, uid: str = STUDY, token: str | None = TOKEN) -> list[bytes]:
        asked = reference(study_instance_uid=uid, dicomweb_url=f"{self.origin}/dicom-web")
        return list(
            retrieve_study(
                self.transport,
                asked,
                allowed_origins=frozenset((self.origin,)),
                access_token=token,
                limits=RetrievalLimits(deadline_s=1.0),
            )
        )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPACS]:
    folder = tmp_path_factory.mktemp("pacs")
    catalogue = Catalogue((study(folder, STUDY), study(folder, OTHER)))
    faults = Faults()
    origin = free_url()
    ledger = folder / "ledger.jsonl"
    app = create_pacs(
        catalogue, introspect=lambda token: token == TOKEN, faults=faults, ledger=LedgerFile(ledger)
    )
    with serving(app, origin):
        made = RunningPACS(origin, faults, ledger)
        yield made
        made.browser.close()
        made.transport.close()


@pytest.fixture
def pacs(running: RunningPACS) -> Iterator[RunningPACS]:
    yield running
    for name, value in vars_of(Faults()).items():
        setattr(running.faults, name, value)


def vars_of(faults: Faults) -> dict[str, object]:
    return {name: getattr(faults, name) for name in Faults.__slots__}


def test_a_study_comes_as_it_lies(pacs: RunningPACS) -> None:
    with Decoder() as decoder:
        decoded = [decoder.decode(file).pixels[0] for file in pacs.retrieve()]
    for pixels, seed in zip(decoded, (1, 2), strict=True):
        np.testing.assert_array_equal(pixels, picture(seed=seed))


@pytest.mark.parametrize("token", [None, "bad"])
def test_a_token_is_needed(pacs: RunningPACS, token: str | None) -> None:
    with pytest.raises(UpstreamRefused):
        pacs.retrieve(token=token)


@pytest.mark.parametrize(
    ("fault", "value", "error"),
    [
        ("status", 500, UpstreamError),
        ("status", 404, NotFound),
        ("slow_s", 1.5, UpstreamError),
        ("drip_s", 0.2, UpstreamError),
        ("truncated", True, UpstreamError),
        ("wrong_study", True, IdentityConflict),
    ],
)
def test_faults_are_faults(pacs: RunningPACS, fault: str, value: object, error: type[RayhookError]) -> None:
    setattr(pacs.faults, fault, value)
    with pytest.raises(error):
        pacs.retrieve()


def test_a_pacs_without_the_wildcard_still_serves_explicit_little_endian(pacs: RunningPACS) -> None:
    pacs.faults.no_wildcard = True
    assert len(pacs.retrieve()) == 2


def test_an_unknown_study_is_not_found(pacs: RunningPACS) -> None:
    with pytest.raises(NotFound):
        pacs.retrieve("1.2.3.4")


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/studies", {STUDY, OTHER}),
        (f"/studies?StudyInstanceUID={STUDY}", {STUDY}),
        ("/studies?PatientID=P1&limit=5", {STUDY, OTHER}),
        (f"/studies/{STUDY}/series", {f"{STUDY}.1"}),
        (f"/studies/{STUDY}/instances", {f"{STUDY}.1.1", f"{STUDY}.1.2"}),
        (f"/studies/{STUDY}/series/{STUDY}.1/instances?SOPInstanceUID={STUDY}.1.2", {f"{STUDY}.1.2"}),
    ],
)
def test_searches_find(pacs: RunningPACS, path: str, keys: set[str]) -> None:
    tag = "0020000D" if "/series" not in path and "/instances" not in path else "0020000E"
    tag = "00080018" if "/instances" in path else tag
    answer = pacs.browser.get(path)
    assert answer.headers["content-type"] == "application/dicom+json"
    assert {one[tag]["Value"][0] for one in answer.json()} == keys


def test_a_search_without_a_match_has_no_content(pacs: RunningPACS) -> None:
    assert pacs.browser.get("/studies?PatientID=nobody").status_code == 204


@pytest.mark.parametrize("level", ["", f"/series/{STUDY}.1", f"/series/{STUDY}.1/instances/{STUDY}.1.1"])
def test_metadata_has_no_pixels(pacs: RunningPACS, level: str) -> None:
    for one in pacs.browser.get(f"/studies/{STUDY}{level}/metadata").json():
        assert "7FE00010" not in one
        assert one["0020000D"]["Value"] == [STUDY]


def _stow(pacs: RunningPACS, *files: bytes) -> httpx.Response:
    body = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    return pacs.browser.post("/studies", content=body + b"--x--\r\n", headers={"Content-Type": kind})


def test_a_stored_instance_can_be_retrieved(pacs: RunningPACS) -> None:
    uid = f"{STUDY}.88"
    file = encode(dataset(picture(), StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.1"))
    answer = _stow(pacs, file)
    assert answer.status_code == 200
    assert answer.json()["00081199"]["Value"][0]["00081155"]["Value"] == [f"{uid}.1"]
    assert pacs.retrieve(uid) == [file]


def test_what_is_no_dicom_is_not_stored(pacs: RunningPACS) -> None:
    assert _stow(pacs, b"no image").status_code == 409


def test_a_store_that_partly_fails_is_accepted(pacs: RunningPACS) -> None:
    file = encode(dataset(picture(), StudyInstanceUID=f"{STUDY}.89", SOPInstanceUID=f"{STUDY}.89.1"))
    assert _stow(pacs, file, b"no image").status_code == 202


def test_another_media_type_is_not_stored(pacs: RunningPACS) -> None:
    assert pacs.browser.post("/studies", content=b"{}").status_code == 415


def _instance(uid: str, **changes: object) -> bytes:
    return encode(dataset(picture(), StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.1", **changes))


def _reason(answer: httpx.Response) -> int:
    (item,) = answer.json()["00081198"]["Value"]
    return int(item["00081197"]["Value"][0])


def test_the_same_file_again_is_stored_and_held_once(pacs: RunningPACS) -> None:
    uid = f"{STUDY}.90"
    assert [_stow(pacs, _instance(uid)).status_code for _ in range(2)] == [200, 200]
    assert len(pacs.retrieve(uid)) == 1


def test_another_file_under_a_taken_uid_is_refused(pacs: RunningPACS) -> None:
    uid = f"{STUDY}.91"
    first = _instance(uid)
    _stow(pacs, first)
    answer = _stow(pacs, _instance(uid, SeriesDescription="changed"))
    assert (answer.status_code, _reason(answer)) == (409, 0x0111)
    assert pacs.retrieve(uid) == [first]


def test_an_instance_of_another_patient_is_refused(pacs: RunningPACS) -> None:
    stranger = encode(
        dataset(picture(), StudyInstanceUID=STUDY, SOPInstanceUID=f"{STUDY}.1.99", PatientID="P-OTHER")
    )
    answer = _stow(pacs, stranger)
    assert (answer.status_code, _reason(answer)) == (409, 0xA900)


def test_an_instance_of_another_study_than_the_path_is_refused(pacs: RunningPACS) -> None:
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + _instance(f"{STUDY}.92") + b"\r\n--x--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    answer = pacs.browser.post(f"/studies/{STUDY}", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, _reason(answer)) == (409, 0xA900)


def test_a_class_that_it_is_told_to_refuse_is_refused_by_name(pacs: RunningPACS) -> None:
    pacs.faults.refused["1.2.840.10008.5.1.4.1.1.4"] = 0x0122
    try:
        answer = _stow(pacs, _instance(f"{STUDY}.93"))
    finally:
        pacs.faults.refused.clear()
    (item,) = answer.json()["00081198"]["Value"]
    assert (item["00081155"]["Value"], _reason(answer)) == ([f"{STUDY}.93.1"], 0x0122)


def test_a_busy_pacs_says_when_to_come_again(pacs: RunningPACS) -> None:
    pacs.faults.busy = 1
    answers = [_stow(pacs, _instance(f"{STUDY}.94")) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 200]
    assert answers[0].headers["retry-after"] == "1"


def test_what_was_retrieved_is_in_the_ledger(pacs: RunningPACS) -> None:
    before = len(entries(pacs))
    pacs.retrieve(OTHER)
    assert [(e.act, e.study) for e in entries(pacs)[before:]] == [(Act.RETRIEVED, OTHER)]


def entries(pacs: RunningPACS) -> list[Entry]:
    return list(read_ledger(pacs.ledger)) if pacs.ledger.exists() else []
