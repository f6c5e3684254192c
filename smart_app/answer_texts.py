"""The words of answers and signatures on the page, in the reader's language."""

from rayhook.fhir.codes import DiagnosticReportStatus as Report
from rayhook.fhir.text import translatable
from rayhook.inference.answers import AnswerAction, AnswerReason, FindingValue, Laterality
from rayhook.inference.signature import SignAct

ACTIONS = {
    AnswerAction.ACCEPTED: translatable("Accepted"),
    AnswerAction.ADDED: translatable("Added"),
    AnswerAction.EDITED: translatable("Changed"),
    AnswerAction.REJECTED: translatable("Rejected"),
    AnswerAction.WITHDRAWN: translatable("Taken back"),
}
VALUES = {
    FindingValue.PRESENT: translatable("Present"),
    FindingValue.ABSENT: translatable("Not seen"),
    FindingValue.UNCERTAIN: translatable("Uncertain"),
}
SIDES = {
    Laterality.LEFT: translatable("Left"),
    Laterality.RIGHT: translatable("Right"),
    Laterality.BILATERAL: translatable("Both sides"),
    Laterality.MIDLINE: translatable("Midline"),
}
REASON_TEXTS = {
    AnswerReason.ARTEFACT: translatable("Artefact"),
    AnswerReason.CLINICAL_CONTEXT: translatable("Clinical context or another examination"),
    AnswerReason.DUPLICATE: translatable("Already reported elsewhere"),
    AnswerReason.FALSE_NEGATIVE: translatable("The model missed it"),
    AnswerReason.FALSE_POSITIVE: translatable("The model is wrong: it is not there"),
    AnswerReason.IMAGE_QUALITY: translatable("Image quality too low"),
    AnswerReason.NOT_ASSESSABLE: translatable("Cannot be told on these images"),
    AnswerReason.NOT_LOOKED_FOR: translatable("The model does not look for it"),
    AnswerReason.OTHER: translatable("Another reason (say which)"),
    AnswerReason.OUTSIDE_INTENDED_USE: translatable("Outside the model's intended use"),
    AnswerReason.SITE_OR_SIZE: translatable("Other site, side or size"),
    AnswerReason.TAKEN_BACK: translatable("Added by mistake"),
    AnswerReason.WRONG_STUDY: translatable("Wrong study or wrong patient"),
}
STATUSES = {
    Report.AMENDED: translatable("Amended"),
    Report.CANCELLED: translatable("Cancelled"),
    Report.CORRECTED: translatable("Corrected"),
    Report.ENTERED_IN_ERROR: translatable("Entered in error"),
    Report.FINAL: translatable("Final"),
    Report.PRELIMINARY: translatable("Preliminary"),
}
ACTS = {
    SignAct.AMEND: translatable("Amended"),
    SignAct.CORRECT: translatable("Corrected"),
    SignAct.SIGN: translatable("Signed"),
    SignAct.WITHDRAW: translatable("Withdrawn"),
}
