"""A made-up evaluation, for the tests of what is written about one."""

import numpy as np

from rayhook.inference.registry import Estimate
from rayhook.inference.training.bootstrap import Answers, Questions, estimates
from rayhook.inference.training.conformal import fit_rule
from rayhook.inference.training.evaluation_report import (
    Environment,
    EvaluationReport,
    Explanation,
    Resampling,
    Threshold,
    UnitFigures,
    baseline,
    prevalence_table,
    subgroup,
    without_prevalences,
)
from rayhook.inference.training.metrics import reliability_bins

PREVALENCES = (0.01, 0.1)
ROUNDS = 60


def make_answers(rows: int = 240, patients: int = 24) -> Answers:
    random = np.random.default_rng(0)
    patient = np.arange(rows) % patients
    labels = random.integers(0, 2, rows)
    logits = 2 * (2 * labels - 1) + random.normal(size=patients)[patient] + random.normal(size=rows)
    probabilities = 1 / (1 + np.exp(-logits))
    return Answers(
        labels=labels,
        probabilities=probabilities,
        patients=np.array([f"P{k:02}" for k in patient]),
        answered=np.abs(probabilities - 0.5) > 0.2,
        threshold=0.45,
    )


def make_report(weights_sha256: str = "ab" * 32) -> EvaluationReport:
    answers = make_answers()
    found = estimates(answers, Questions(PREVALENCES, specificities=(0.9,)), rounds=ROUNDS)
    sites = np.where(answers.patients < "P12", "DU", "HT")
    trivial = answers.labels + np.random.default_rng(1).normal(size=answers.labels.size)
    parts = [(site, answers.chosen(sites == site)) for site in ("DU", "HT")]
    return EvaluationReport(
        model_id="mri-flair-tumour",
        model_version="1.0.0",
        model_status="experimental",
        weights_sha256=weights_sha256,
        label="tumour",
        dataset="made_up",
        split="val",
        labels_sha256="cd" * 32,
        unit="slice",
        patients=24,
        count=240,
        positives=int(answers.labels.sum()),
        threshold=Threshold(0.45, "least sensitivity of 0.94 on 12 development patients."),
        estimates=without_prevalences(found),
        prevalence_table=prevalence_table(found, PREVALENCES),
        reliability=reliability_bins(answers.labels, answers.probabilities),
        selection=fit_rule(answers.probabilities, answers.labels, answers.patients).around(0.45),
        subgroups=tuple(
            subgroup("site", site, part, estimates(part, Questions(()), rounds=ROUNDS))
            for site, part in parts
        ),
        baselines=(baseline("mean intensity", trivial, answers, rounds=ROUNDS),),
        explanation=Explanation(
            120, Estimate(0.9, 0.8, 0.95), Estimate(0.4, 0.3, 0.5), Estimate(0.1, 0.05, 0.2)
        ),
        other_units=(
            UnitFigures("series", 24, 24, 24, {"sensitivity": Estimate(0.95, 0.8, 1.0)}, "Sensitivity only."),
        ),
        limits=("Every patient has a tumour & none is healthy <at all>.",),
        resampling=Resampling(ROUNDS, 0),
        environment=Environment("3.11.0", "a processor", {"numpy": "2.4.6"}),
    )
