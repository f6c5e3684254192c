"""Every use of cryptography, for people and, as a CycloneDX bill of materials, for machines.

What of quantum computers: symmetric keys of 256 bits and SHA-256 stay strong against Grover's algorithm (NIST's
categories 5 and 2). Signatures and key agreement over elliptic curves and RSA fall to Shor's: they protect what is
verified now, except for the audit's, which is witnessed outside besides, and for TLS, whose traffic may be kept.

Spec: CycloneDX 1.6, cryptographic assets; OWASP ASVS 5.0.0 V11.1.1 to V11.1.4; NIST IR 8547
"""

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

_SYMMETRIC = "stays strong (Grover halves 256 bits to 128)"
_TOKENS = (
    "broken by a quantum computer; only ever verified now, so to be replaced once SMART and OIDC name ML-DSA"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CryptoUse:
    """`modules` are where it is done, by the `libraries`; `quantum_level` is NIST's category, 0 for none."""

    name: str
    algorithm: str
    primitive: str
    key_bits: int | None
    purpose: str
    functions: tuple[str, ...]
    libraries: tuple[str, ...]
    modules: tuple[str, ...]
    rotation: str
    post_quantum: str
    quantum_level: int = 0
    is_protocol: bool = False

    def component(self) -> dict[str, Any]:
        """Return the use as a component of a CycloneDX bill of materials."""
        properties = {"rotation": self.rotation, "post-quantum": self.post_quantum}
        properties |= {"library": ", ".join(self.libraries)}
        return {
            "type": "cryptographic-asset",
            "bom-ref": f"crypto/{self.name}",
            "name": self.algorithm,
            "description": self.purpose,
            "cryptoProperties": self._protocol() if self.is_protocol else self._algorithm(),
            "evidence": {"occurrences": [{"location": module} for module in self.modules]},
            "properties": [{"name": f"rayhook:{name}", "value": value} for name, value in properties.items()],
        }

    def _algorithm(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "primitive": self.primitive,
            "cryptoFunctions": list(self.functions),
            "nistQuantumSecurityLevel": self.quantum_level,
        }
        if self.key_bits is not None:
            content["parameterSetIdentifier"] = str(self.key_bits)
        return {"assetType": "algorithm", "algorithmProperties": content}

    @staticmethod
    def _protocol() -> dict[str, Any]:
        return {"assetType": "protocol", "protocolProperties": {"type": "tls", "version": "1.2"}}


INVENTORY: Final[tuple[CryptoUse, ...]] = (
    CryptoUse(
        name="column-encryption",
        algorithm="AES-256-GCM",
        primitive="ae",
        key_bits=256,
        purpose="Seals stored values and data keys, bound to table, column and row",
        functions=("encrypt", "decrypt", "keygen"),
        libraries=("tink",),
        modules=("auth/encryption.py",),
        rotation="`rayhook keys encryption`; before 2^32 uses at the latest",
        post_quantum=_SYMMETRIC,
        quantum_level=5,
    ),
    CryptoUse(
        name="data-key-encryption",
        algorithm="AES-256-GCM",
        primitive="ae",
        key_bits=256,
        purpose="Seals what is stored of one patient, and the audit; destroyed alone",
        functions=("encrypt", "decrypt", "keygen"),
        libraries=("tink",),
        modules=("auth/data_key.py",),
        rotation="wrapped anew with the column keys; replaced by erasure",
        post_quantum=_SYMMETRIC,
        quantum_level=5,
    ),
    CryptoUse(
        name="file-encryption",
        algorithm="AES-256-GCM-HKDF (streaming)",
        primitive="ae",
        key_bits=256,
        purpose="Seals images and other files while they are on their way, bound to their name",
        functions=("encrypt", "decrypt", "keygen"),
        libraries=("tink",),
        modules=("inference/sealed_spool.py",),
        rotation="each spool has a key of its own, kept no longer than the spool",
        post_quantum=_SYMMETRIC,
        quantum_level=5,
    ),
    CryptoUse(
        name="keyring-envelope",
        algorithm="AES-256-GCM",
        primitive="ae",
        key_bits=256,
        purpose="Seals the keyring file under a data key that AWS KMS wraps",
        functions=("encrypt", "decrypt"),
        libraries=("cryptography",),
        modules=("auth/kms.py",),
        rotation="a new data key at every writing; `rayhook keys rewrap`; KMS rotates its own key",
        post_quantum=_SYMMETRIC,
        quantum_level=5,
    ),
    CryptoUse(
        name="blind-index",
        algorithm="HMAC-SHA-256",
        primitive="mac",
        key_bits=256,
        purpose="Finds sealed values; MACs of audit events",
        functions=("tag", "keygen"),
        libraries=("tink",),
        modules=("auth/encryption.py",),
        rotation="none: events of the audit hold it inside what is signed (deploy/docs/keys.md)",
        post_quantum=_SYMMETRIC,
        quantum_level=2,
    ),
    CryptoUse(
        name="audit-signature",
        algorithm="Ed25519",
        primitive="signature",
        key_bits=256,
        purpose="Signs checkpoints, hand-overs, tombstones, proofs and exports of the audit",
        functions=("sign", "verify", "keygen"),
        libraries=("cryptography",),
        modules=(
            "audit/chain.py",
            "audit/checkpoint.py",
            "audit/export.py",
            "audit/handover.py",
            "audit/proof.py",
            "audit/record.py",
            "audit/tombstone.py",
            "auth/key_rotation.py",
            "auth/keyring_file.py",
            "auth/keys.py",
            "deploy/audit_commands.py",
            "deploy/audit_desk.py",
        ),
        rotation="`rayhook audit rotate-key`; the old key vouches for the new one",
        post_quantum="broken by a quantum computer; older statements stay witnessed by S3 object lock, printed "
        "digests and syslog. To move to ML-DSA-65 (FIPS 204) by a hand-over, once `cryptography` signs with it",
    ),
    CryptoUse(
        name="audit-tree",
        algorithm="SHA-256",
        primitive="hash",
        key_bits=None,
        purpose="Merkle tree and chain of the audit, digests of its exports and purges",
        functions=("digest",),
        libraries=("hashlib",),
        modules=("audit/export.py", "audit/merkle.py", "audit/tombstone.py"),
        rotation="no key",
        post_quantum="stays strong",
        quantum_level=2,
    ),
    CryptoUse(
        name="client-assertion-ecdsa",
        algorithm="ECDSA P-384 with SHA-384 (ES384)",
        primitive="signature",
        key_bits=384,
        purpose="Signs our SMART client assertions; verifies CDS clients' and identity providers' JWTs",
        functions=("sign", "verify", "keygen"),
        libraries=("cryptography", "joserfc"),
        modules=("auth/client_keys.py", "auth/jose.py", "auth/keys.py", "auth/token_endpoint.py"),
        rotation="`rayhook keys rotate-client`, without a gap",
        post_quantum=_TOKENS,
    ),
    CryptoUse(
        name="client-assertion-rsa",
        algorithm="RSASSA-PKCS1-v1_5 with SHA-384 (RS384)",
        primitive="signature",
        key_bits=3072,
        purpose="The same, for EHRs that know RSA only",
        functions=("sign", "verify", "keygen"),
        libraries=("cryptography", "joserfc"),
        modules=("auth/client_keys.py", "auth/jose.py", "auth/keys.py", "auth/token_endpoint.py"),
        rotation="`rayhook keys rotate-client`, without a gap",
        post_quantum=_TOKENS,
    ),
    CryptoUse(
        name="passwords",
        algorithm="Argon2id",
        primitive="kdf",
        key_bits=None,
        purpose="Hashes the passwords of local accounts",
        functions=("keyderive",),
        libraries=("argon2",),
        modules=("auth/passwords.py",),
        rotation="renewed at a sign-in when its parameters have risen",
        post_quantum="stays strong",
        quantum_level=1,
    ),
    CryptoUse(
        name="one-time-codes",
        algorithm="TOTP (HMAC-SHA-1)",
        primitive="mac",
        key_bits=160,
        purpose="Second factor of local accounts (RFC 6238, as authenticator apps have it); recovery codes are "
        "compared by SHA-256",
        functions=("tag", "digest"),
        libraries=("hashlib", "hmac", "pyotp"),
        modules=("auth/one_time_codes.py",),
        rotation="`rayhook account reset`",
        post_quantum="stays strong: codes live for seconds",
        quantum_level=1,
    ),
    CryptoUse(
        name="session-and-token-digests",
        algorithm="SHA-256",
        primitive="hash",
        key_bits=None,
        purpose="Sessions, invitations and bearer tokens are stored and looked up by their digest",
        functions=("digest",),
        libraries=("hashlib",),
        modules=(
            "auth/accounts.py",
            "auth/bearer.py",
            "auth/emergency.py",
            "auth/sessions.py",
            "auth/staff_oidc_requests.py",
            "auth/staff_sessions.py",
        ),
        rotation="no key; what is digested lives for hours",
        post_quantum="stays strong",
        quantum_level=2,
    ),
    CryptoUse(
        name="secret-comparison",
        algorithm="constant-time comparison",
        primitive="other",
        key_bits=None,
        purpose="Compares tokens, nonces and MACs without telling by time where they differ",
        functions=("other",),
        libraries=("hmac",),
        modules=(
            "auth/arrival_sources.py",
            "auth/id_token.py",
            "deploy/metrics.py",
            "smart_app/window.py",
        ),
        rotation="no key",
        post_quantum="not affected",
    ),
    CryptoUse(
        name="queue-messages",
        algorithm="HMAC-SHA-256",
        primitive="mac",
        key_bits=256,
        purpose="Messages that wake a worker are made by who has the keyring",
        functions=("tag",),
        libraries=("hmac",),
        modules=("deploy/redis_doorbell.py",),
        rotation="with the blind index's key",
        post_quantum="stays strong",
        quantum_level=2,
    ),
    CryptoUse(
        name="content-digests",
        algorithm="SHA-256",
        primitive="hash",
        key_bits=None,
        purpose="Names and pins content: model weights, data sets, images, DICOM UIDs, jobs, reports, caches",
        functions=("digest",),
        libraries=("hashlib",),
        modules=(
            "deploy/wrap.py",
            "inference/analysis.py",
            "inference/arrival_source.py",
            "inference/decode.py",
            "inference/dicom_uid.py",
            "inference/identity.py",
            "inference/jobs.py",
            "inference/litert.py",
            "inference/model.py",
            "inference/pacs_poll.py",
            "inference/received.py",
            "inference/registry.py",
            "inference/report.py",
            "inference/report_card.py",
            "inference/report_key.py",
            "inference/reuse.py",
            "inference/training/dataset.py",
            "inference/training/evaluation_report.py",
            "inference/training/recipe.py",
            "inference/training/shards.py",
            "inference/training/train.py",
        ),
        rotation="no key",
        post_quantum="stays strong",
        quantum_level=2,
    ),
    CryptoUse(
        name="tls",
        algorithm="TLS 1.2 and 1.3",
        primitive="key-agree",
        key_bits=None,
        purpose="Everything between machines: EHR, PACS, identity provider, syslog, Redis, PostgreSQL, browsers",
        functions=("keygen", "encrypt", "decrypt", "verify"),
        libraries=("cryptography", "ssl"),
        modules=(
            "audit/syslog.py",
            "deploy/production.py",
            "deploy/redis.py",
            "deploy/server.py",
            "deploy/tls.py",
            "fhir/network.py",
            "fhir/transport.py",
        ),
        rotation="the operator's certificates, read again when their files change",
        post_quantum="what is recorded today could be read by a quantum computer later; X25519MLKEM768 is agreed on "
        "where OpenSSL 3.5 or newer is on both ends, without a change here",
        is_protocol=True,
    ),
    CryptoUse(
        name="conformance-and-demo",
        algorithm="ES384, RS384, SHA-256, and what has to be refused",
        primitive="signature",
        key_bits=384,
        purpose="The conformance command's forged tokens, and the demo EHR; nothing of the service",
        functions=("sign", "verify", "digest"),
        libraries=("cryptography", "hashlib", "hmac", "joserfc", "ssl"),
        modules=(
            "deploy/conformance/command.py",
            "deploy/conformance/target.py",
            "deploy/conformance/tokens.py",
            "deploy/conformance/trust_checks.py",
            "deploy/demo/ehr.py",
            "deploy/demo/ehr_authorization.py",
            "deploy/demo/ehr_cds_client.py",
            "deploy/demo/ehr_clients.py",
            "deploy/demo/ehr_keys.py",
            "deploy/demo/ehr_seed.py",
        ),
        rotation="made for each run or demo folder",
        post_quantum=_TOKENS,
    ),
)


def as_json_text() -> str:
    """Return the inventory as a CycloneDX 1.6 bill of materials."""
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "rayhook", "version": version("rayhook")}},
        "components": [use.component() for use in INVENTORY],
    }
    return json.dumps(content, indent=2)
