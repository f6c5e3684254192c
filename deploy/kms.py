"""Where this installation's keyring is, and the client of AWS KMS that opens it where one is configured."""

import ipaddress
import threading
from typing import Final
from urllib.parse import urlsplit

import structlog

from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.keys import Keyring
from rayhook.auth.kms import KMSWrap
from rayhook.deploy.health import Health
from rayhook.deploy.storage_settings import StorageSettings
from rayhook.fhir.errors import InvalidRequest, ServiceUnavailable

_TIMEOUT_S: Final = 5
_ASK_AGAIN_S: Final = 5.0

log = structlog.get_logger(__name__)


def keyring_file(settings: StorageSettings) -> KeyringFile:
    wrap = None if settings.kms_key is None else kms_wrap(settings.kms_key, settings.installation)
    return KeyringFile(settings.keyring_path, wrap)


def open_keyring(settings: StorageSettings) -> Keyring:
    """Return the keyring, made where there is none. Raises ServiceUnavailable as Keyring.load_or_create does."""
    source = keyring_file(settings)
    return Keyring.load_or_create(source.path, source.wrap)


def await_kms(settings: StorageSettings, health: Health, stopping: threading.Event) -> None:
    """Return once the keyring opens; while the KMS is away, ask again and let `health` say so.

    Nothing is read meanwhile, and nothing takes the KMS's place. Raises ServiceUnavailable for a keyring that does
    not open for another reason, and when told to stop.
    """
    if settings.kms_key is None:
        return
    while True:
        try:
            open_keyring(settings)
        except ServiceUnavailable as error:
            if error.code != "kms_unavailable" or stopping.is_set():
                raise
            log.error("kms_unavailable", reason=error.message)  # noqa: TRY400 - the reason says it all
            health.waiting = ("kms", error)
        else:
            health.waiting = None
            return
        stopping.wait(_ASK_AGAIN_S)


def kms_wrap(key_uri: str, installation: str) -> KMSWrap:
    """Return what opens envelopes of this key; the region is the key's own.

    Credentials, certificate bundle and endpoint are found as every program of AWS finds them. Raises InvalidRequest
    where what they say cannot be used.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": 2},
        user_agent_extra="rayhook",
    )
    try:
        client = boto3.client("kms", config=config, region_name=key_uri.split(":")[4])
    except (BotoCoreError, ValueError) as error:
        raise InvalidRequest(
            f"the AWS_* variables cannot be used: {type(error).__name__}", code="bad_aws_settings"
        ) from error
    if not _is_private(client.meta.endpoint_url):
        raise InvalidRequest(
            "the KMS endpoint must be https: data keys come over it",
            code="bad_aws_settings",
            expression="AWS_ENDPOINT_URL",
        )
    return KMSWrap(client, key_uri, installation)


def _is_private(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    if parts.scheme == "https":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"
