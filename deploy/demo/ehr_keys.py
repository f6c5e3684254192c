"""The demo EHR's own signing keys, kept between runs in files that only their owner can read."""

import json
import os
from pathlib import Path

from joserfc.jwk import ECKey


def load_or_create_key(path: Path) -> ECKey:
    """Return the P-384 key stored at `path` as a JWK, made on first use."""
    if path.exists():
        return ECKey.import_key(json.loads(path.read_text()))
    key = ECKey.generate_key("P-384", auto_kid=True, parameters={"use": "sig", "alg": "ES384"})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(key.as_dict(private=True), file)
    return key
