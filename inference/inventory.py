"""The installed models as `rayhook model list` tells them."""

from typing import Any

import msgspec

from rayhook.inference.registry import Evaluation, Label, ModelPackage


def describe_model(package: ModelPackage) -> dict[str, Any]:
    """Return one installed model as a JSON object.

    `threshold` is the leading label's.  `metrics` are of the first evaluation, which `evaluated_on` names.
    `body_part` is the first of `body_parts`, the values of BodyPartExamined that the model takes.
    """
    manifest = package.manifest
    evaluation = next(iter(manifest.evaluations), None)
    return {
        "id": manifest.id,
        "version": manifest.version,
        "title": manifest.title,
        "status": manifest.status.value,
        "enabled": manifest.enabled,
        "role": manifest.role.value,
        "finder": manifest.finder,
        "modality": manifest.modality,
        "modalities": list(manifest.modalities),
        "body_part": manifest.body_parts[0],
        "body_parts": list(manifest.body_parts),
        "intended_use": manifest.intended_use,
        "limits": list(manifest.limits),
        "labels": [_label(label) for label in manifest.labels],
        "threshold": manifest.labels[0].threshold,
        "weights_sha256": manifest.weights_sha256,
        "manifest_sha256": package.manifest_sha256,
        "licence": manifest.licence,
        "training_data": manifest.training_data,
        "metrics": {} if evaluation is None else msgspec.to_builtins(evaluation.estimates),
        "evaluated_on": None if evaluation is None else _evaluated_on(evaluation),
    }


def _label(label: Label) -> dict[str, Any]:
    return {
        "name": label.name,
        "finding": msgspec.to_builtins(label.finding),
        "radlex": msgspec.to_builtins(label.radlex),
        "body_site": msgspec.to_builtins(label.body_site),
        "threshold": label.threshold,
    }


def _evaluated_on(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "dataset": evaluation.dataset,
        "subset": evaluation.subset,
        "unit": evaluation.unit,
        "patients": evaluation.patients,
        "count": evaluation.count,
        "positives": evaluation.positives,
        "limits": evaluation.limits,
    }
