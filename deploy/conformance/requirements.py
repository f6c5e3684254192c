"""What CDS Hooks asks of a service and of those who call it, numbered, in a few words each.

Spec: CDS Hooks 2.0.1, 3.0.0-ballot, Library 1.0.1 and best practices
"""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    MAY = "MAY"
    MUST = "MUST"
    MUST_NOT = "MUST NOT"
    OURS = "ours"
    SHOULD = "SHOULD"


@dataclass(frozen=True, slots=True)
class Requirement:
    """`unseen` says why a run against a deployment cannot show it, where no check does."""

    id: str
    level: Level
    text: str
    unseen: str = ""


_MUST, _SHOULD, _MAY, _NOT, _OURS = Level.MUST, Level.SHOULD, Level.MAY, Level.MUST_NOT, Level.OURS

REQUIREMENTS = (
    Requirement("R1", _MUST, "Everything is JSON over HTTPS"),
    Requirement("R2", _MUST, "No member is null or empty"),
    Requirement("R3", _SHOULD, "JSON without comments and trailing commas"),
    Requirement("R4", _SHOULD, "An answer within half a second"),
    Requirement("R5", _MAY, "Other 4xx and 5xx codes"),
    Requirement("R6", _SHOULD, "An OperationOutcome on every answer that is not 2xx"),
    Requirement("R7", _SHOULD, "Public documentation that people can read"),
    Requirement("R8", _MUST, "GET /cds-services answers 200"),
    Requirement("R9", _MUST, "Discovery is an object with the array services"),
    Requirement("R10", _MUST, "Each service has hook, description and id"),
    Requirement("R11", _SHOULD, "Each service has a title"),
    Requirement("R12", _MAY, "prefetch is an object of queries, usageRequirements a string"),
    Requirement("R13", _SHOULD, "version is the semantic version of the specification"),
    Requirement("R14", _MUST, "hookVersion is the published one"),
    Requirement("R15", _MUST, "A service is at /cds-services/{id}"),
    Requirement("R16", _MAY, "One id for several hooks, each hook once"),
    Requirement("R17", _MUST, "Prefetch templates have keys"),
    Requirement("R18", _MUST, "Takes a POST of hook, hookInstance, context and what may stand beside them"),
    Requirement("R19", _MUST, "fhirAuthorization only beside fhirServer"),
    Requirement("R20", _MUST, "hookInstance is a UUID; a repeated one is no error"),
    Requirement("R21", _OURS, "Another hook, an unknown id and a missing context are refused as 4xx"),
    Requirement("R22", _MUST, "userId is Type/id, patientId and encounterId are bare ids"),
    Requirement("R23", _MUST, "extension may stand on any object"),
    Requirement("R24", _SHOULD, "Names of extensions are globally unique"),
    Requirement("R25", _MUST, "Prefetch tokens are context paths or user ids"),
    Requirement("R26", _MUST, "Templates for 2.0 clients: root-level context fields alone"),
    Requirement("R27", _MAY, "FHIRPath in templates is not counted upon"),
    Requirement("R28", _MUST, "Templates that depend on others stand after them, without cycles"),
    Requirement("R29", _SHOULD, "Templates keep to the restricted queries"),
    Requirement("R30", _MUST, "Null, an empty Bundle and a part of the keys are taken"),
    Requirement("R31", _MUST, "What is missing is noticed; null is data"),
    Requirement("R32", _SHOULD, "OperationOutcomes in prefetch are noticed"),
    Requirement("R33", _MUST, "412 where required data cannot be had"),
    Requirement("R34", _SHOULD, "Works from prefetch, and from the FHIR server"),
    Requirement("R35", _MAY, "Fetches from fhirServer", "needs a FHIR server that the deployment has registered"),
    Requirement("R36", _MUST, "Every FHIR call shows the lent token", "seen by the FHIR server alone"),
    Requirement("R37", _MUST, "A malformed fhirAuthorization is refused"),
    Requirement("R38", _MUST, "The token is not kept, shared or logged", "inside the service"),
    Requirement("R39", _MUST, "Scopes of SMART 1 and of SMART 2 are read"),
    Requirement("R40", _MUST, "Registered with the client's authorization server", "an agreement between two parties"),
    Requirement("R41", _MUST, "200 with the array cards"),
    Requirement("R42", _SHOULD, "Nothing to say: 200 and no cards"),
    Requirement("R43", _MAY, "card.uuid is a UUID"),
    Requirement("R44", _MUST, "card.summary has fewer than 140 characters"),
    Requirement("R45", _MUST, "card.detail is Markdown; here without HTML"),
    Requirement("R46", _MUST, "card.indicator is info, warning or critical"),
    Requirement("R47", _MUST, "card.source has a label; its URLs are absolute"),
    Requirement("R48", _MUST, "card.source.topic has code and system"),
    Requirement("R49", _MUST, "Suggestions come with selectionBehavior, and only they"),
    Requirement("R50", _MUST, "A suggestion has a label; at-most-one recommends at most one"),
    Requirement("R51", _NOT, "No actionSelectionBehavior for clients that may not know it"),
    Requirement("R52", _MUST, "Actions carry whole resources, or the id of what is deleted"),
    Requirement("R53", _MUST, "The actions of a suggestion hold together"),
    Requirement("R54", _MUST, "Override reasons have code, system and display"),
    Requirement("R55", _MAY, "Override reasons of the example value set"),
    Requirement("R56", _MUST, "A link has label, url and a type"),
    Requirement("R57", _NOT, "No appContext but on smart links"),
    Requirement("R58", _MUST, "What an autolaunched app tells, the cards tell"),
    Requirement("R59", _MUST, "No systemActions that were not agreed upon"),
    Requirement("R60", _MAY, "Takes feedback at /cds-services/{id}/feedback"),
    Requirement("R61", _MUST, "Feedback is an array of card, outcome and time"),
    Requirement("R62", _MUST, "accepted names its suggestions"),
    Requirement("R63", _MUST, "overridden with reason, comment, both or neither"),
    Requirement("R64", _MUST, "Several cards, and one card repeatedly"),
    Requirement("R65", _MUST, "Feedback is authenticated as a call is"),
    Requirement("R66", _SHOULD, "Without a JWT nothing is answered"),
    Requirement("R67", _MAY, "Mutual TLS", "an agreement between two parties"),
    Requirement("R68", _MUST, "JWT header: alg, kid, typ"),
    Requirement("R69", _MUST, "JWT claims: iss, aud, exp, iat, jti"),
    Requirement("R70", _MUST, "aud is the URL of the very endpoint"),
    Requirement("R71", _SHOULD, "Allow lists for iss and jku"),
    Requirement("R72", _MUST, "The signature is verified, exp is kept"),
    Requirement("R73", _SHOULD, "A jti is good once, also of many at once"),
    Requirement("R74", _SHOULD, "tenant is on an allow list, where there are tenants"),
    Requirement("R75", _NOT, "No alg none and no symmetric algorithm"),
    Requirement("R76", _SHOULD, "ES384 and RS384 are accepted"),
    Requirement("R77", _SHOULD, "Keys are cached and rotated", "needs the client's key server"),
    Requirement("R78", _SHOULD, "JWTs are never stored or logged", "inside the service"),
    Requirement("R79", _SHOULD, "A bare 401, whatever was wrong"),
    Requirement("R80", _MUST, "TLS on discovery and services"),
    Requirement("R81", _SHOULD, "CORS for registered pages, and no others"),
    Requirement("R82", _SHOULD, "Access is authorised and audited", "inside the service: `rayhook audit list` shows it"),
    Requirement("R83", _SHOULD, "Cards may be replaced: they are not to be stored, and say how old they are"),
    Requirement("R84", _OURS, "Foreign FHIR servers, hostile ids and oversized bodies are refused"),
)  # fmt: skip
