import msgspec
import pytest

from rayhook.inference.study import AnalysisStatus, StudyResult
from tests.unit.inference.samples import analysed, nothing_to_rate, unanswered


def as_stored_before_digests(result):
    """The JSON of a result as versions without digests and marks wrote it."""
    document = msgspec.to_builtins(result)
    document.pop("slice_uids")
    for instance in document["instances"]:
        for added in ("marks", "sha256"):
            instance.pop(added)
    for one in (document, *document["instances"]):
        if one["model"] is not None:
            one["model"] = {name: one["model"][name] for name in ("id", "version", "weights_sha256")}
    return msgspec.json.encode(document)


@pytest.mark.parametrize(
    "result", [analysed(), *map(unanswered, (AnalysisStatus.ABSTAINED, AnalysisStatus.REFUSED))]
)
def test_a_result_stored_before_the_digests_is_read(result):
    assert msgspec.json.decode(as_stored_before_digests(result), type=StudyResult) == result


def test_a_model_of_a_result_stored_before_the_digests_counts_as_experimental():
    stored = as_stored_before_digests(analysed())
    assert msgspec.json.decode(stored, type=StudyResult).model.experimental


@pytest.mark.parametrize(
    ("result", "nothing"),
    [
        (nothing_to_rate(), True),
        (analysed(), False),
        (analysed(0.1), False),
        (unanswered(AnalysisStatus.ABSTAINED), False),
    ],
    ids=["nothing to rate", "positive", "negative", "abstained"],
)
def test_only_an_analysis_without_findings_found_nothing_to_rate(result, nothing):
    assert result.found_nothing_to_rate is nothing
