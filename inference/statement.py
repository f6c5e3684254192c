"""The wording of what the service is and of what a result leaves out, in one place for every output."""

from collections import Counter
from collections.abc import Iterable

from rayhook.fhir.text import Sentence, translatable
from rayhook.inference.aggregate import MAX_OF_MEDIAN3, MEAN_OF_CENTRAL
from rayhook.inference.study import AnalysisStatus, InstanceResult, ModelIdentity, StudyResult

INVESTIGATIONAL = translatable(
    "Investigational software, not cleared for diagnosis by any regulator. "
    "The images have to be read, and this output confirmed, by a radiologist; "
    "it must not be the basis of a clinical decision."
)

INVESTIGATIONAL_SHORT = "Investigational, not cleared for diagnosis; to be confirmed by a radiologist."

EXPERIMENTAL = translatable(
    "Experimental model: not validated on images of other sites; its answer is for research only."
)

NOTHING_TO_RATE = translatable(
    "Nothing was found to rate: no point of the images was like what the model rates. "
    "This does not rule out what it looks for."
)

_AGGREGATIONS = {
    MAX_OF_MEDIAN3: translatable("the highest median over three neighbouring slices"),
    MEAN_OF_CENTRAL: translatable(
        "the point rated highest, each by its mean logit over the four slices that show it best"
    ),
}
_ALMOST_ONE = 0.999


def cautions(model: ModelIdentity | None) -> tuple[str, ...]:
    """Return the sentences that stand beside every answer of a model."""
    return (EXPERIMENTAL, INVESTIGATIONAL) if is_experimental(model) else (INVESTIGATIONAL,)


def is_experimental(model: ModelIdentity | None) -> bool:
    """Return whether there is a model, and it is experimental."""
    return model is not None and model.experimental


def model_words(model: ModelIdentity | None) -> str:
    """Return what the model is called where its name is not said."""
    return "experimental model" if is_experimental(model) else "model"


def marked(name: str, model: ModelIdentity | None) -> str:
    """Return a model's name or answer with the mark of an experimental model."""
    return f"{name} (experimental)" if is_experimental(model) else name


def aggregation_text(aggregation: str) -> str:
    """Return in words how the answers on images became that on the study."""
    return _AGGREGATIONS.get(aggregation, aggregation)


def probability_text(probability: float) -> str:
    """Return three decimals, never 0 or 1: no model is certain."""
    if probability > _ALMOST_ONE:
        return f"above {_ALMOST_ONE:.3f}"
    if probability < 1 - _ALMOST_ONE:
        return f"below {1 - _ALMOST_ONE:.3f}"
    return f"{probability:.3f}"


def incomplete(instances: Iterable[InstanceResult]) -> Sentence | None:
    """Return the sentence that says how many images could not be read and why, None if all could be."""
    every = tuple(instances)
    codes = Counter(i.error_code or "unknown" for i in every if i.status is AnalysisStatus.REFUSED)
    if not codes:
        return None
    reasons = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    return Sentence(
        "Incomplete: %(count)s of %(total)s images could not be read (%(reasons)s).",
        {"count": codes.total(), "total": len(every), "reasons": reasons},
    )


def limits(result: StudyResult) -> tuple[str, ...]:
    """Return one sentence for each way in which the result does not speak for the whole study."""
    return tuple(map(str, limit_sentences(result)))


def limit_sentences(result: StudyResult) -> tuple[Sentence, ...]:
    """Return the sentences of `limits` as a page may translate them."""
    sentences = (incomplete(result.instances), _unanswered(result), _out_of_scope(result), _series(result))
    return tuple(sentence for sentence in sentences if sentence is not None)


def _unanswered(result: StudyResult) -> Sentence | None:
    count = _count(result, AnalysisStatus.ABSTAINED)
    if not count:
        return None
    return Sentence(
        "The model gave no answer on %(count)s of %(total)s images.",
        {"count": count, "total": len(result.instances)},
    )


def _out_of_scope(result: StudyResult) -> Sentence | None:
    count = _count(result, AnalysisStatus.OUT_OF_SCOPE)
    if not count:
        return None
    return Sentence(
        "%(count)s of %(total)s images are outside the scope of every model and were not analysed.",
        {"count": count, "total": len(result.instances)},
    )


def _series(result: StudyResult) -> Sentence | None:
    """Return which series the findings are of, where the model looked at others as well."""
    if result.status is not AnalysisStatus.ANALYSED or result.series_instance_uid is None:
        return None
    analysed = {i.series_instance_uid for i in result.instances if i.status is AnalysisStatus.ANALYSED}
    others = sorted(uid for uid in analysed - {result.series_instance_uid} if uid is not None)
    if not others:
        return None
    return Sentence(
        "Series analysed: %(highest)s (highest), %(others)s.",
        {"highest": result.series_instance_uid, "others": ", ".join(others)},
    )


def _count(result: StudyResult, status: AnalysisStatus) -> int:
    return sum(instance.status is status for instance in result.instances)
