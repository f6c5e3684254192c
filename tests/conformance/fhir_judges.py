"""Four validators that are not ours, asked one by one: each sees what the others let pass."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import fhirkit
import jsonschema_rs
from pyrofile_validator.config import ValidatorConfig
from pyrofile_validator.core.engine import Validator

Resource = Mapping[str, Any]

FOLDER = Path(__file__).resolve().parent.parent / "peers" / "fhir"
SCHEMA = FOLDER / "node_modules" / "@medplum" / "definitions" / "dist" / "fhir" / "r4" / "fhir.schema.json"

# What pyrofile warns of, and why that is not a fault of the resource.
_EXPECTED_WARNINGS = {
    # R4 4.0.1 is older than AIAST; the AI Transparency guide asks for it in these places.
    ("terminology.extensible", "'AIAST'"),
    ("profile.element.binding.extensible", "'AIAST'"),
    # A descendant of v3-ObservationValue#_SecurityObservationValue: pyrofile does not expand that filter.
    ("terminology.extensible", "'CLINAST'"),
    ("profile.element.binding.extensible", "'CLINAST'"),
    # A child of v3-ActReason#PurposeOfUse: pyrofile does not expand that value set's filter.
    ("terminology.extensible", "'TREAT'"),
    ("profile.element.binding.extensible", "'TREAT'"),
    # The DICOM SR to FHIR guide's type of an identifier that is a Study Instance UID.
    ("terminology.extensible", "'110180'"),
    # `status` is a modifier element, not a modifierExtension.
    ("modifierExtension.present", ""),
    # One resource by itself: what it refers to is judged in the Bundle, or lies at the EHR.
    ("reference.unresolved", ""),
    ("reference.external", ""),
    # The guide's own component codes, and ours, are beside what R4 suggests.
    ("terminology.preferred", ""),
    # "contained resources SHOULD NOT have a narrative" (FHIR R4 references.html#contained)
    ("invariant.dom-6 at DocumentReference", ""),
    ("profile.invariant.dom-6 at DocumentReference", ""),
    # BALP's own entity type, beside R4's extensible ones; a narrative would tell a patient's story a second time.
    ("profile.element.binding.extensible", "'XrequestId'"),
    ("terminology.extensible", "'XrequestId'"),
    ("profile.element.binding.extensible", "'AuthZ-"),
    ("terminology.extensible", "'AuthZ-"),
    ("invariant.dom-6 at AuditEvent", ""),
    ("profile.invariant.dom-6 at AuditEvent", ""),
    # A total is optional, and not told where counting would cost more than the page.
    ("bundle.searchset.total", ""),
    # What went wrong is in words already; nobody reads a narrative of it.
    ("invariant.dom-6 at OperationOutcome", ""),
    ("profile.invariant.dom-6 at OperationOutcome", ""),
}
# What it takes for an error and is none: it counts an element of all rest.resource, and of all details, together, and
# inside of entities it looks for the bare name of a choice.
_FALSE_ALARMS = re.compile(
    r"profile\.element\.cardinality\.max at CapabilityStatement\.rest\.resource\..+"
    r"|cardinality\.min at AuditEvent\.entity\[\d+\]\.detail\[\d+\]\.value\[x\]"
    r"|profile\.(slice\.)?element\.cardinality\.max at AuditEvent\.entity(:data)?\.detail\..+"
)


@dataclass(frozen=True)
class Judges:
    """`packages` are the folders of R4's own definitions, and of those of BALP and AI Transparency."""

    packages: tuple[Path, ...]
    _validators: dict[str, Any] = field(default_factory=dict)

    def pyrofile(self, resource: Resource) -> list[str]:
        """Errors, and the warnings that nobody has explained."""
        if "pyrofile" not in self._validators:
            config = ValidatorConfig(
                local_package_paths=[str(folder) for folder in self.packages],
                error_on_unknown_profile=True,
            )
            self._validators["pyrofile"] = Validator(config)
        with redirect_stdout(StringIO()):  # fhirpathpy prints what trace() is given
            report = self._validators["pyrofile"].validate_resource(json.loads(json.dumps(resource)))
        return [
            f"{issue.code} at {issue.path}: {issue.message}"
            for issue in report.issues
            if not _is_expected(issue)
        ]

    def schema(self, resource: Resource) -> list[str]:
        """Spec: FHIR R4 json.html#schema"""
        name = str(resource.get("resourceType"))
        if name not in self._validators:
            self._validators[name] = jsonschema_rs.validator_for(_schema_of(name))
        return [
            f"{'/'.join(map(str, error.instance_path))}: {error.message[:200]}"
            for error in self._validators[name].iter_errors(resource)
        ]

    def fhirkit(self, resource: Resource) -> list[str]:
        try:
            return [str(issue) for issue in fhirkit.validate(json.dumps(resource))]
        except fhirkit.ParseError as error:
            return [str(error)]

    def errors(self, resource: Resource) -> list[str]:
        """What pyrofile, the JSON schema and fhirkit say together."""
        return [*self.pyrofile(resource), *self.schema(resource), *self.fhirkit(resource)]


def medplum(resources: Iterable[Resource]) -> list[list[str]]:
    """Return the errors that Medplum's validator finds in each, against R4 itself."""
    node = shutil.which("node")
    assert node is not None
    lines = "".join(f"{json.dumps(resource)}\n" for resource in resources)
    answer = subprocess.run(
        [node, "medplum.mjs"],
        cwd=FOLDER,
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [json.loads(line) for line in answer.stdout.splitlines()]


def _is_expected(issue: Any) -> bool:
    places = (issue.code, f"{issue.code} at {issue.path}")
    if _FALSE_ALARMS.fullmatch(places[1]):
        return True
    is_warning = issue.severity.value not in ("error", "fatal")
    return is_warning and any(
        known in places and words in issue.message for known, words in _EXPECTED_WARNINGS
    )


def _schema_of(name: str) -> dict[str, Any]:
    """Medplum adds resources of its own, two of whose types R4 does not have."""
    whole = json.loads(SCHEMA.read_text())
    definitions = {**whole["definitions"], "Resource": False, "integer64": False}
    return {"$schema": whole["$schema"], "definitions": definitions, "$ref": f"#/definitions/{name}"}
