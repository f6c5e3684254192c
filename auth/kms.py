"""The keyring file under a key of AWS KMS: an envelope that opens only where KMS lets it.

A fresh data key seals the content at every writing; KMS wraps the data key, bound to the installation and the
purpose. Which KMS key that may be is configured, and never taken from the file: whoever can write the file alone
cannot put a key of their own in its place.

Spec: AWS KMS Developer Guide, "Encryption context"; NIST SP 800-38D (AES-256-GCM); OWASP ASVS 5.0.0 V13.3
"""

import base64
import binascii
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import rfc8785
from botocore.exceptions import BotoCoreError, ClientError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rayhook.auth.keyring_file import ENVELOPE_FORM, refusal
from rayhook.fhir.errors import ServiceUnavailable

_VERSION: Final = 1
_NONCE_BYTES: Final = 12
# KMS answered, and the answer is no: trying again changes nothing before somebody changes a policy or the file.
_NOT_OURS: Final = frozenset({"IncorrectKeyException", "InvalidCiphertextException"})
_PASSING: Final = frozenset(
    {
        "DependencyTimeoutException",
        "InternalFailure",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "ThrottlingException",
    }
)


class _Envelope(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file's JSON: `data_key` as KMS wrapped it, `content` as nonce and ciphertext, both in base64."""

    form: str
    version: int
    kms_key: str
    installation: str
    data_key: str
    content: str


@dataclass(frozen=True, slots=True)
class KMSWrap:
    """`client` is boto3's for KMS, `key_uri` the one key it may use, `installation` whose keyring this is."""

    client: Any = field(repr=False)
    key_uri: str
    installation: str

    @property
    def context(self) -> dict[str, str]:
        """Return the encryption context: in KMS's own log, and what a key policy can ask for."""
        return {"rayhook:installation": self.installation, "rayhook:purpose": "keyring"}

    def wrap(self, content: bytes) -> bytes:
        """Return the envelope of `content`. Raises ServiceUnavailable, `kms_unavailable` or `kms_refused`."""
        with _asking():
            made = self.client.generate_data_key(
                KeyId=self._arn, KeySpec="AES_256", EncryptionContext=self.context
            )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(made["Plaintext"]).encrypt(nonce, content, self._bound)
        envelope = _Envelope(
            form=ENVELOPE_FORM,
            version=_VERSION,
            kms_key=self.key_uri,
            installation=self.installation,
            data_key=base64.b64encode(made["CiphertextBlob"]).decode("ascii"),
            content=base64.b64encode(nonce + sealed).decode("ascii"),
        )
        return msgspec.json.encode(envelope)

    def unwrap(self, text: bytes) -> bytes:
        """Return the content of an envelope.

        Raises ServiceUnavailable: `kms_unavailable` where KMS does not answer, `kms_refused` where it says no,
        `keyring_refused` for an envelope of another key or installation, and for one that was altered.
        """
        envelope = _decode(text)
        if envelope.kms_key != self.key_uri:
            raise refusal("is wrapped by another KMS key than RAYHOOK_KMS_KEY names")
        if envelope.installation != self.installation:
            raise refusal("is wrapped for another installation than RAYHOOK_INSTALLATION names")
        try:
            data_key = base64.b64decode(envelope.data_key, validate=True)
            content = base64.b64decode(envelope.content, validate=True)
        except binascii.Error as error:
            raise refusal("is no envelope that can be read") from error
        with _asking():
            answer = self.client.decrypt(
                KeyId=self._arn, CiphertextBlob=data_key, EncryptionContext=self.context
            )
        try:
            return AESGCM(answer["Plaintext"]).decrypt(
                content[:_NONCE_BYTES], content[_NONCE_BYTES:], self._bound
            )
        except (InvalidTag, ValueError) as error:
            raise refusal("was altered since it was wrapped") from error

    @property
    def _arn(self) -> str:
        return self.key_uri.removeprefix("aws-kms://")

    @property
    def _bound(self) -> bytes:
        bound: Mapping[str, Any] = {
            "form": ENVELOPE_FORM,
            "version": _VERSION,
            "key": self.key_uri,
            **self.context,
        }
        return rfc8785.dumps(dict(bound))


def _decode(text: bytes) -> _Envelope:
    try:
        envelope = msgspec.json.decode(text, type=_Envelope)
    except msgspec.DecodeError as error:
        raise refusal("is no envelope that can be read") from error
    if envelope.form != ENVELOPE_FORM or envelope.version != _VERSION:
        raise refusal("is no envelope of this version")
    return envelope


@contextmanager
def _asking() -> Iterator[None]:
    """What KMS writes of its own is left out: it names principals."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "KMS"))[:64]
        if code in _NOT_OURS:
            raise refusal("is not one that this KMS key wrapped for this installation") from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _PASSING or status >= 500:  # noqa: PLR2004 - HTTP's own classes
            raise ServiceUnavailable(f"the KMS does not answer: {code}", code="kms_unavailable") from error
        raise ServiceUnavailable(f"the KMS refuses its key: {code}", code="kms_refused") from error
    except BotoCoreError as error:
        raise ServiceUnavailable(
            f"the KMS does not answer: {type(error).__name__}", code="kms_unavailable"
        ) from error
