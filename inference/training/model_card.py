"""The model card: Markdown from a manifest and an evaluation report, and from nothing else."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rayhook.fhir.errors import ModelIntegrityError
from rayhook.inference.registry import Coding, Estimate, Manifest
from rayhook.inference.statement import INVESTIGATIONAL
from rayhook.inference.training.evaluation_report import EvaluationReport
from rayhook.inference.training.figure_text import (
    counted,
    heatmap_figures,
    interval,
    ordered,
    p_value,
    percent,
    shown,
)

_SUBGROUP_FIGURES = {"auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity"}


def model_card(manifest: Manifest, report: EvaluationReport) -> str:
    """Return the card; the same two give the same text.

    Raises ModelIntegrityError if the report is of other weights.
    Spec: 45 CFR 170.315(b)(11)(iv)(B), the source attributes
    """
    if report.weights_sha256 != manifest.weights_sha256:
        raise ModelIntegrityError(f"the evaluation is not of the weights of {manifest.id}")
    sections = (
        _head(manifest),
        _use(manifest),
        _training(manifest),
        _evaluation(report),
        _other_units(report),
        _prevalences(report),
        _baselines(report),
        _subgroups(report),
        _calibration(report),
        _abstention(manifest, report),
        _explanation(report),
        _attributes(manifest),
        _provenance(manifest, report),
    )
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def _head(manifest: Manifest) -> Iterator[str]:
    yield f"# {manifest.id} {manifest.version}"
    yield ""
    yield f"{manifest.title}. Status: **{manifest.status.value}**."
    yield ""
    yield f"> {INVESTIGATIONAL}"
    yield ""
    yield "This card is generated from `manifest.json` and the evaluation report; do not edit it."
    yield ""


def _use(manifest: Manifest) -> Iterator[str]:
    yield from _section("Intended use", manifest.intended_use)
    yield f"- Modality: {', '.join(manifest.modalities)}; body part: {', '.join(manifest.body_parts)}"
    yield f"- SOP classes: {', '.join(manifest.sop_class_uids)}"
    for label in manifest.labels:
        codes = [_coded(label.finding), *([] if label.radlex is None else [_coded(label.radlex)])]
        yield f"- Finding: {label.name}, {', '.join(codes)}, at {_coded(label.body_site)}"
    yield ""
    yield from _section("Limits")
    yield from _bullets(manifest.limits)


def _training(manifest: Manifest) -> Iterator[str]:
    yield from _section("Training data", manifest.training_data)
    yield f"Recipe, SHA-256: `{manifest.recipe_sha256}`"
    yield ""


def _evaluation(report: EvaluationReport) -> Iterator[str]:
    yield from _section(
        "Evaluation",
        f"{report.dataset}, split {report.split}: {counted(report.count, report.unit)} of "
        f"{counted(report.patients, 'patient')}, {report.positives} with the finding ({percent(report.prevalence)}).",
        f"Threshold {report.threshold.value:.4f}: {report.threshold.source}",
        f"{report.resampling.method} ({report.resampling.rounds} rounds).",
    )
    yield from _figures(report.unit, report.estimates)
    yield from _section("What these figures do not show", level=3)
    yield from _bullets(report.limits)


def _other_units(report: EvaluationReport) -> Iterator[str]:
    for part in report.other_units:
        counts = f"n = {part.count}, of {part.patients} patients, {part.positives} with the finding."
        yield from _section(f"By {part.unit}", f"{counts} {part.limits}", level=3)
        yield from _figures(part.unit, part.estimates)


def _prevalences(report: EvaluationReport) -> Iterator[str]:
    if not report.prevalence_table:
        return
    yield from _section("Predictive values at other prevalences", level=3)
    rows = [
        (percent(row.prevalence), interval(row.ppv), interval(row.npv)) for row in report.prevalence_table
    ]
    yield from _table(("Prevalence", "PPV", "NPV"), rows)


def _baselines(report: EvaluationReport) -> Iterator[str]:
    if not report.baselines:
        return
    yield from _section("Trivial baselines", level=3)
    rows = [
        (b.name, interval(b.auc), interval(b.difference), p_value(b.clustered_p), p_value(b.delong_p))
        for b in report.baselines
    ]
    header = ("Baseline", "AUC of the baseline", "Model minus baseline", "p by patient", "p, DeLong")
    yield from _table(header, rows)


def _subgroups(report: EvaluationReport) -> Iterator[str]:
    if not report.subgroups:
        return
    yield from _section("Subgroups", level=3)
    rows = [
        (
            f"{part.name} {part.value}",
            str(part.patients),
            str(part.count),
            *shown(part.estimates, _SUBGROUP_FIGURES),
        )
        for part in report.subgroups
    ]
    yield from _table(("Subgroup", "Patients", "Count", *_SUBGROUP_FIGURES.values()), rows)


def _calibration(report: EvaluationReport) -> Iterator[str]:
    if not report.reliability:
        return
    yield from _section("Calibration", level=3)
    rows = [
        (f"{b.low:.3f} to {b.high:.3f}", str(b.count), f"{b.predicted:.3f}", interval(b.observed))
        for b in report.reliability
    ]
    yield from _table(("Probabilities", "Images", "Mean", "Share with the finding"), rows)


def _abstention(manifest: Manifest, report: EvaluationReport) -> Iterator[str]:
    if report.selection is None and not manifest.abstentions:
        return
    yield from _section("Abstention", level=3)
    if report.selection is not None:
        rule = report.selection
        yield f"Not sure from {rule.low:.4f} to {rule.high:.4f}. {rule.rule}"
        yield f"Here alpha_positive is {rule.alpha_positive} and alpha_negative {rule.alpha_negative}."
        yield ""
    if manifest.abstentions:
        rows = [(a.images, str(a.count), percent(a.rate)) for a in manifest.abstentions]
        yield from _table(("Images it is not meant for", "Count", "Not answered"), rows)


def _explanation(report: EvaluationReport) -> Iterator[str]:
    found = report.explanation
    if found is None:
        return
    words = f"On {found.count} images with the finding and a reader's mask."
    yield from _section("Heatmap", words, level=3)
    rows = [(name, interval(figure)) for name, figure in heatmap_figures(found)]
    yield from _table(("Figure", "Value (95 % interval)"), rows)


def _attributes(manifest: Manifest) -> Iterator[str]:
    yield from _section("Source attributes", "By their number in 45 CFR 170.315(b)(11)(iv)(B).")
    rows = [(str(a.number), a.title, a.value) for a in sorted(manifest.card, key=lambda a: a.number)]
    yield from _table(("No.", "Attribute", "Value"), rows)


def _provenance(manifest: Manifest, report: EvaluationReport) -> Iterator[str]:
    yield from _section("Licence", manifest.licence)
    yield from _section("Provenance")
    yield f"- Weights, SHA-256: `{manifest.weights_sha256}`"
    if manifest.quantisation is not None:
        kept = manifest.quantisation
        yield f"- Quantisation: {kept.scheme}; AUC {kept.auc_float32:.4f} before, {kept.auc_shipped:.4f} as shipped"
    yield f"- `labels.csv`, SHA-256: `{report.labels_sha256}`"
    libraries = ", ".join(f"{name} {v}" for name, v in sorted(report.environment.libraries.items()))
    yield f"- Evaluated with Python {report.environment.python}, {libraries}, on {report.environment.cpu}"


def _section(heading: str, *paragraphs: str, level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} {heading}"
    yield ""
    for paragraph in paragraphs:
        yield paragraph
        yield ""


def _figures(unit: str, estimates: Mapping[str, Estimate]) -> Iterator[str]:
    rows = [(name, interval(found)) for name, found in ordered(estimates)]
    yield from _table((f"Figure, by {unit}", "Value (95 % interval)"), rows)


def _bullets(sentences: Iterable[str]) -> Iterator[str]:
    yield from (f"- {sentence}" for sentence in sentences)
    yield ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(header)
    yield _row(["---"] * len(header))
    yield from (_row(row) for row in rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


def _coded(coding: Coding) -> str:
    return f"{coding.display} ({coding.system} {coding.code})"
