"""What an earlier study of the same part of the body said of the same finding."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rayhook.fhir.codes import SNOMED
from rayhook.inference.anatomy import Region, regions_of
from rayhook.inference.jobs import StoredResult
from rayhook.inference.study import AnalysisStatus, Finding, ModelIdentity
from rayhook.smart_app.worklist_order import started_at


@dataclass(frozen=True, slots=True)
class Examined:
    """A result with what its study showed of the body."""

    stored: StoredResult
    regions: frozenset[Region]


@dataclass(frozen=True, slots=True)
class Prior:
    """An earlier answer. same_model: by the same weights, so that the two numbers mean the same."""

    result_id: str
    started: str | None
    probability: float
    same_model: bool


def regions_examined(
    body_sites: Iterable[str], description: str | None, findings: Iterable[Finding]
) -> frozenset[Region]:
    """Return the parts of the body that a study shows, from what the EHR, the study and the model say of it."""
    sites = tuple(body_sites)
    coded = [(SNOMED, code) for code in (*sites, *(one.body_site_code for one in findings))]
    return regions_of(coded, (*sites, description or ""))


def prior_of(finding: Finding, of: Examined, earlier: Iterable[Examined]) -> Prior | None:
    """Return the newest answer on the same finding before the study, in the same part of the body."""
    candidates = list(_candidates(finding, of, earlier))
    if not candidates:
        return None
    then, before = max(candidates, key=lambda found: (started_at(found[0].reference.started), found[0].id))
    return Prior(
        then.id,
        then.reference.started,
        before.probability,
        same_model=_is_same(then.result.model, of.stored.result.model),
    )


def _candidates(
    finding: Finding, of: Examined, earlier: Iterable[Examined]
) -> Iterator[tuple[StoredResult, Finding]]:
    begun = started_at(of.stored.reference.started)
    for one in earlier:
        result = one.stored.result
        if result.status is not AnalysisStatus.ANALYSED or not one.regions & of.regions:
            continue
        if started_at(one.stored.reference.started) >= begun:
            continue
        for found in result.findings:
            if (found.system, found.code) == (finding.system, finding.code):
                yield one.stored, found


def _is_same(one: ModelIdentity | None, other: ModelIdentity | None) -> bool:
    """The manifest counts: the same weights under another calibration give another number."""
    if one is None or other is None:
        return False
    return (one.id, one.weights_sha256, one.manifest_sha256) == (
        other.id,
        other.weights_sha256,
        other.manifest_sha256,
    )
