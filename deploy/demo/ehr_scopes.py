"""What the demo EHR grants to its one app: to its user, to a hook, and to the app as a system."""

READ_SCOPES = (
    "patient/Patient.r",
    "patient/ImagingStudy.rs",
    "patient/Endpoint.rs",
    "patient/ServiceRequest.rs",
    "patient/DiagnosticReport.rs",
    "patient/Observation.rs",
    "patient/Device.rs",
    "patient/Provenance.rs",
    "patient/DocumentReference.rs",
)
WRITE_SCOPES = (
    "patient/DiagnosticReport.c",
    "patient/Observation.c",
    "patient/Device.c",
    "patient/Provenance.c",
    "patient/DocumentReference.c",
)
LOGIN_SCOPES = ("openid", "fhirUser", "launch", "online_access")
CONTEXT_SCOPES = ("launch/patient", "launch/imagingstudy")
SYSTEM_SCOPES = (
    "system/Patient.r",
    "system/ImagingStudy.rs",
    "system/Endpoint.rs",
    "system/ServiceRequest.rs",
    "system/DiagnosticReport.crus",
    "system/Observation.crus",
    "system/Device.crs",
    "system/Provenance.crs",
    "system/DocumentReference.crs",
    "system/Subscription.cruds",
)
