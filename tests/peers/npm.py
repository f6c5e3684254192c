"""npm packages that tests run against: installed once from their lock file, into an ignored folder."""

import fcntl
import shutil
import subprocess
from pathlib import Path

from tests.conftest import absent

PEERS = Path(__file__).resolve().parent


def installed(name: str) -> Path:
    """Return the peer's folder after `npm ci`; skip the test, or fail it, where there is no node or registry."""
    folder = PEERS / name
    if shutil.which("node") is None or shutil.which("npm") is None:
        absent("Node.js with npm")
    modules, lock = folder / "node_modules", folder / "package-lock.json"
    done = modules / ".rayhook-installed"
    with (folder / "package.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists() or done.read_bytes() != lock.read_bytes():
            run = subprocess.run(
                ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=folder,
                check=False,
                capture_output=True,
                timeout=240,
            )
            if run.returncode != 0:
                absent(f"the npm packages of tests/peers/{name}")
            done.write_bytes(lock.read_bytes())
    return folder
