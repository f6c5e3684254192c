"""An error as its page tells it: what happened, what to do now, and what to tell support."""

from dataclasses import dataclass, field

from rayhook.fhir.errors import (
    Conflict,
    Erased,
    Forbidden,
    NotFound,
    RayhookError,
    ServiceUnavailable,
    Unauthenticated,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from rayhook.fhir.text import translatable

SCOPE_MISSING = "scope_missing"
_PERMISSION_CODES = frozenset({SCOPE_MISSING, "images_not_permitted"})


@dataclass(frozen=True, slots=True)
class Problem:
    """All texts are to be translated.

    detail: the error's own message, English where it has no translation.  scope: what the EHR did not grant.
    """

    title: str
    advice: tuple[str, ...]
    tone: str = "failed"
    detail: str = ""
    scope: str = ""
    again: bool = False
    status: int = field(default=500, kw_only=True)


_RELAUNCH = translatable("Open Rayhook again from the patient's chart in your EHR.")
_SAYS_NOTHING = translatable("This says nothing about the images or the patient.")

_ENDED = (
    translatable("Your session has ended"),
    (
        translatable("Nothing of the patient is shown any more. A session ends after a time without use."),
        _RELAUNCH,
    ),
)
_STALE = (
    translatable("Another patient was opened since"),
    (
        translatable("This window was for a patient whose session has ended. Nothing that it did was sent."),
        _RELAUNCH,
    ),
)
_NOT_PERMITTED = (
    translatable("Not permitted by your EHR"),
    (
        translatable("Your EHR did not give Rayhook the right to what this page needs."),
        translatable("Its administrators can permit it in Rayhook's registration; then open Rayhook again."),
    ),
)
_NO_ROLE = (
    translatable("Your role does not allow this"),
    (translatable("Roles come from your EHR. Its administrators can tell you who may do this."),),
)
_ERASED = (
    translatable("This was erased"),
    (
        translatable("The patient's data were erased here for good, and nobody can read them any more."),
        translatable("What the EHR and the image archive have is as it was. A study can be analysed anew."),
    ),
)
_NOT_FOUND = (
    translatable("There is nothing here"),
    (
        translatable("It does not exist, or it is not the launched patient's."),
        translatable("The list of imaging studies shows what there is."),
    ),
)
_SILENT = (
    translatable("Your EHR or the image archive does not answer"),
    (
        translatable("Rayhook waited as long as a page may take. Results that are stored stay safe."),
        _SAYS_NOTHING,
    ),
)
_UPSTREAM = (
    translatable("Your EHR or the image archive gave an answer that cannot be used"),
    (_SAYS_NOTHING, translatable("If it stays so, tell support the number below.")),
)
_BUSY = (
    translatable("Rayhook cannot do this at the moment"),
    (_SAYS_NOTHING, translatable("If it stays so, tell support the number below.")),
)
_CHANGED = (
    translatable("It has changed meanwhile"),
    (translatable("Somebody else was faster. Look at what is there now before you go on."),),
)
_OTHER = (translatable("This could not be shown"), (_SAYS_NOTHING, _RELAUNCH))


@dataclass(frozen=True, slots=True)
class _Kind:
    """codes: those of the class that it is for, all where there are none."""

    error: type[RayhookError]
    words: tuple[str, tuple[str, ...]]
    codes: frozenset[str] = frozenset()
    tone: str = "neutral"
    again: bool = False

    def is_of(self, error: RayhookError) -> bool:
        return isinstance(error, self.error) and (not self.codes or error.code in self.codes)


# The first that fits counts.
_KINDS = (
    _Kind(Unauthenticated, _ENDED),
    _Kind(Conflict, _STALE, frozenset({"window_stale"})),
    _Kind(Conflict, _CHANGED, again=True),
    _Kind(Forbidden, _NOT_PERMITTED, _PERMISSION_CODES),
    _Kind(Forbidden, _NO_ROLE, frozenset({"role_insufficient"})),
    _Kind(Erased, _ERASED),
    _Kind(NotFound, _NOT_FOUND),
    _Kind(UpstreamUnavailable, _SILENT, tone="failed", again=True),
    _Kind(UpstreamTimeout, _SILENT, tone="failed", again=True),
    _Kind(UpstreamError, _UPSTREAM, tone="failed", again=True),
    _Kind(ServiceUnavailable, _BUSY, tone="failed", again=True),
    _Kind(RayhookError, _OTHER, tone="failed"),
)


def problem_of(error: RayhookError) -> Problem:
    kind = next(kind for kind in _KINDS if kind.is_of(error))
    title, advice = kind.words
    return Problem(
        title,
        advice,
        tone=kind.tone,
        # The message of a 401 says why, and that stays inside.
        detail="" if isinstance(error, Unauthenticated) else error.message,
        scope=(error.expression or "") if error.code in _PERMISSION_CODES else "",
        again=kind.again,
        status=error.status,
    )
