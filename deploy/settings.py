"""Every setting of the service: read once, here, from the environment."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rayhook.deploy.storage_settings import PREFIX, OwnerSettings, StorageSettings
from rayhook.fhir.errors import InvalidRequest
from rayhook.inference.intake import Intake
from rayhook.inference.job_table import WorkerQueue


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class WorkerMode(StrEnum):
    """Whether `rayhook serve` analyses by itself, or leaves that to `rayhook worker` processes."""

    EMBEDDED = "embedded"
    SEPARATE = "separate"


class EngineDevice(StrEnum):
    """Where networks run; `auto`: on the GPUs that TensorFlow finds, or else the processor."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


def default_engine_cache() -> Path:
    """Return the user's cache folder for exported models. Spec: XDG Base Directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayhook" / "engine"


class ModelSettings(BaseSettings):
    """Which models run: in the service, and in the commands that analyse without it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Ids of the models to run, with commas between them; of two that an image fits, the first takes "
        "it, and a finder comes along by itself. Those that are on by default where it is not set.",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _ids(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(filter(None, (part.strip() for part in value.split(","))))

    @field_validator("models")
    @classmethod
    def _each_is_installed(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        from rayhook.inference.registry import load_models

        if ids and not set(ids) <= {package.manifest.id for package in load_models()}:
            raise ValueError("every id has to be one that `rayhook model list` shows")
        return ids


class Settings(StorageSettings, ModelSettings):
    """Settings of one process, from `RAYHOOK_*` variables (`DATABASE_URL` is honoured too)."""

    environment: Environment = Field(
        Environment.PRODUCTION,
        description="`development` allows http on loopback; `production` refuses to start insecurely.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on.")
    public_base_url: str = Field(
        "http://127.0.0.1:8000",
        description="Base URL that EHRs and browsers use, without a trailing slash; CDS client JWTs name it in `aud`.",
    )
    engine_cache: Path = Field(
        default_factory=default_engine_cache,
        description="Folder of the models as exported for the engine; may be emptied at any time.",
    )
    ehr_registry: Path = Field(Path("ehrs.toml"), description="TOML file that registers the EHRs.")
    organization: str = Field(
        "Rayhook demo site", description="Name of the organization that operates the service."
    )
    tls_certificate: Path | None = Field(None, description="PEM certificate chain to serve https with.")
    tls_key: Path | None = Field(None, description="PEM private key of `tls_certificate`.")
    tls_proxy: bool = Field(
        False,
        description="`true` where nothing but a proxy that ends TLS reaches the address listened on; production "
        "listens on others than loopback without a certificate only then.",
    )
    ca_bundle: Path | None = Field(
        None, description="PEM bundle of the authorities that EHRs and PACS are checked against."
    )
    audit_fhir_feed: str | None = Field(
        None,
        description="FHIR base URL of an audit record repository that gets every event (ITI-20, FHIR feed).",
    )
    audit_fhir_feed_token_file: Path | None = Field(
        None, description="File that holds the bearer token of `audit_fhir_feed`; read at each delivery."
    )
    audit_syslog: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9.:\[\]-]+:[0-9]{1,5}$",
        description="`host:port` of a syslog server over TLS that gets every event and every checkpoint (RFC 5425).",
    )
    audit_syslog_certificate: Path | None = Field(
        None, description="PEM certificate chain to show to `audit_syslog`, where it asks for one."
    )
    audit_syslog_key: Path | None = Field(None, description="PEM private key of `audit_syslog_certificate`.")
    audit_watch: Path | None = Field(
        None,
        description="TOML file of what is unusual access here: thresholds, protected patients, own records.",
    )
    audit_verify_interval_s: Annotated[float, Field(ge=60)] = Field(
        86_400.0, description="Time between verifications of the whole audit trail, in seconds."
    )
    metrics_token_file: Path | None = Field(
        None,
        description="File that holds the bearer token for `/metrics`; without it, only this machine may read them.",
    )
    drain_s: Annotated[float, Field(ge=0, le=300)] | None = Field(
        None,
        description="Time from the signal to stop until nothing new is taken, in seconds, while readiness says no and "
        "load balancers look elsewhere; 5 in production and 0 in development where it is not set.",
    )
    shutdown_s: Annotated[float, Field(ge=5, le=3600)] = Field(
        75.0,
        description="Longest time from the signal to stop until the process ends, in seconds; then it ends hard.",
    )
    hook_wait_s: Annotated[float, Field(gt=0, le=0.45)] = Field(
        0.4, description="Longest time a hook waits for a result, in seconds."
    )
    pipeline_threads: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="Studies analysed at the same time."
    )
    decoder_processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Child processes that decode images."
    )
    viewer_decoder_processes: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="Child processes that decode images for the viewer."
    )
    viewer_retrievals: Annotated[int, Field(ge=1, le=48)] = Field(
        16, description="Questions of all viewers together that the PACS is asked at the same time."
    )
    engine_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        max(1, (os.cpu_count() or 2) - 1), description="Threads of the inference engine."
    )
    engine_device: EngineDevice = Field(
        EngineDevice.AUTO,
        description="Where networks run: `auto` (on the GPUs that TensorFlow finds, or else the processor), `cpu` or `gpu`.",
    )
    job_lease_s: Annotated[float, Field(ge=1, le=600)] = Field(
        10.0,
        description="Time in which a worker has to be heard of, or its jobs are given to another, in seconds.",
    )
    redis_url: str | None = Field(
        None,
        pattern=r"^(redis|rediss|unix)://",
        description="URL of the Redis that wakes workers in other processes; without it, only this process works.",
    )
    redis_namespace: str = Field(
        "rayhook",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Beginning of every key in Redis: installations that share one need names of their own.",
    )
    worker: WorkerMode = Field(
        WorkerMode.EMBEDDED,
        description="`embedded`: `rayhook serve` analyses itself; `separate`: only `rayhook worker` processes do.",
    )
    worker_queues: Annotated[tuple[WorkerQueue, ...], NoDecode] = Field(
        tuple(WorkerQueue),
        min_length=1,
        description="Queues that this process works on, with commas between them: `cpu`, `gpu`.",
    )
    worker_health_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None,
        description="Port on which `rayhook worker` answers `/health/...`, at `host`; none where it is not set.",
    )
    gpu_modalities: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="DICOM modalities whose studies wait for a worker of the queue `gpu`, with commas between them.",
    )
    queue_limit: Annotated[int, Field(ge=1)] = Field(
        10_000,
        description="Analyses that may wait; beyond it new ones are refused for now, `stat` ones after a tenth more.",
    )
    arrival_quiet_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        10.0,
        description="Time without another image after which a study that is stored here is looked at, in seconds.",
    )
    spool_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        10 << 30,
        description="Most bytes of images stored here that are kept, sealed, until they are analysed.",
    )
    checkpoint_interval_s: Annotated[float, Field(ge=1)] = Field(
        60.0, description="Time between signed audit checkpoints, in seconds."
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Lowest level logged.")
    log_format: LogFormat = Field(LogFormat.JSON, description="`json` or `console`.")

    @field_validator("worker_queues", "gpu_modalities", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(filter(None, (part.strip() for part in value.split(","))))

    @model_validator(mode="after")
    def _workers_can_be_woken(self) -> Self:
        if self.worker is WorkerMode.SEPARATE and self.redis_url is None:
            raise ValueError("worker may be `separate` only where redis_url is given")
        return self

    @property
    def intake(self) -> Intake:
        return Intake(self.queue_limit, max(1, self.queue_limit // 10), self.gpu_modalities)

    @property
    def development(self) -> bool:
        return self.environment is Environment.DEVELOPMENT

    @property
    def resolved_drain_s(self) -> float:
        if self.drain_s is not None:
            return self.drain_s
        return 0.0 if self.development else 5.0

    @model_validator(mode="after")
    def _base_url_is_canonical(self) -> Self:
        parts = urlsplit(self.public_base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("public_base_url must be an http or https URL")
        if self.public_base_url.endswith("/") or parts.query or parts.fragment:
            raise ValueError("public_base_url must have no trailing slash, query or fragment")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are given together or not at all")
        return self


def load_settings(**overrides: object) -> Settings:
    """Return the settings of the environment, `overrides` first.

    Raises InvalidRequest, naming the setting and its rule, for a value that may not be, and for an unknown
    `RAYHOOK_*` variable: a misspelt setting must not be ignored.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    if OwnerSettings().database_owner_url is not None:
        raise InvalidRequest(
            "the service must not have the URL of its tables' owner: give it to `rayhook database` alone",
            code="invalid_setting",
            expression=f"{PREFIX}DATABASE_OWNER_URL",
        )
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known and variable not in _TEST_VARIABLES:
            raise InvalidRequest(f"unknown setting {variable}", code="unknown_setting", expression=variable)
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the overrides
    except ValidationError as error:
        raise _invalid(error) from None


def load_model_settings() -> ModelSettings:
    """Return the environment's choice of models. Raises InvalidRequest as load_settings does."""
    try:
        return ModelSettings()
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    # Pydantic's own text quotes the value, which may hold a database's password.
    rules = "; ".join(_rule(problem) for problem in error.errors(include_input=False))
    return InvalidRequest(rules, code="invalid_setting")


def _rule(problem: ErrorDetails) -> str:
    name = "".join(str(part) for part in problem["loc"])
    rule = problem["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{name.upper()}: {rule}" if name else rule


_TEST_VARIABLES = frozenset(
    {"RAYHOOK_DATASETS", "RAYHOOK_PROFILES", "RAYHOOK_REQUIRE_PEERS", "RAYHOOK_SCREENSHOTS"}
)
