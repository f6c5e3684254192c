"""The second factor: codes of an authenticator app, and recovery codes for when it is lost.

Spec: RFC 6238, RFC 4226; NIST SP 800-63B-4 sections 3.1.2 and 3.1.4; OWASP ASVS 5.0.0 V6.5
"""

import hashlib
import hmac
import re
import secrets
from base64 import b32encode
from typing import Final

import pyotp
import segno

ISSUER: Final = "Rayhook"
STEP_S: Final = 30
_DRIFT_STEPS: Final = 1
_DIGITS: Final = 6
_CODE: Final = re.compile(rf"[0-9]{{{_DIGITS}}}")
_RECOVERY_CODES: Final = 10
_RECOVERY_BYTES: Final = 10
_RECOVERY: Final = re.compile(r"[a-z2-7]{16}")
_SEPARATORS: Final = str.maketrans("", "", " -")


def new_secret() -> str:
    """Return 160 random bits in base32, the form that authenticator apps take."""
    return pyotp.random_base32(32)


def enrolment_uri(secret: str, *, account_name: str) -> str:
    """Spec: Key URI format, `otpauth://totp/`."""
    return pyotp.TOTP(secret).provisioning_uri(name=account_name, issuer_name=ISSUER)


def qr_svg(uri: str) -> str:
    """Return an SVG element without a style of its own, which a strict CSP would not apply."""
    return segno.make(uri, micro=False, error="m").svg_inline(scale=5, border=2, light="#fff", omitsize=False)


def qr_text(uri: str) -> str:
    """Return lines for a terminal."""
    matrix = segno.make(uri, micro=False, error="l").matrix_iter(border=2)
    rows = [list(row) for row in matrix]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    # Light on dark, as most terminals are: a block is what is light.
    return "\n".join(
        "".join(_BLOCKS[not top, not bottom] for top, bottom in zip(*two, strict=True)) for two in pairs
    )


_BLOCKS: Final = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}


def current_code(secret: str, now: float) -> str:
    return pyotp.TOTP(secret).at(int(now))


def matching_step(secret: str, code: str, *, now: float, last_step: int) -> int | None:
    """Return the time step whose code it is, one step early or late at most; None for a step that was used.

    Keep the step as `last_step`: a code is good once.
    """
    digits = code.translate(_SEPARATORS)
    if not _CODE.fullmatch(digits):
        return None
    present = int(now) // STEP_S
    totp = pyotp.TOTP(secret)
    steps = range(present - _DRIFT_STEPS, present + _DRIFT_STEPS + 1)
    matches = [step for step in steps if hmac.compare_digest(totp.at(step * STEP_S), digits)]
    return next((step for step in reversed(matches) if step > last_step), None)


def new_recovery_codes() -> tuple[str, ...]:
    """Return ten codes of 80 random bits, for people to write down."""
    return tuple(_new_recovery_code() for _ in range(_RECOVERY_CODES))


def recovery_digest(code: str) -> str | None:
    """Return what is kept of a recovery code; None for what has not the form of one."""
    plain = code.translate(_SEPARATORS).lower()
    return hashlib.sha256(plain.encode()).hexdigest() if _RECOVERY.fullmatch(plain) else None


def _new_recovery_code() -> str:
    text = b32encode(secrets.token_bytes(_RECOVERY_BYTES)).decode().lower()
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))
