import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, socket, subprocess
from rayhook.inference.confinement import confine
filtered = confine()
{attempt}
"""


def run(attempt: str) -> str:
    program = PROGRAM.format(attempt=attempt)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_no_core_dump_is_left() -> None:
    assert run("print(resource.getrlimit(resource.RLIMIT_CORE))") == "(0, 0)"


def test_files_are_limited() -> None:
    assert run("print(resource.getrlimit(resource.RLIMIT_FSIZE)[1])") == str(1 << 30)


@pytest.mark.skipif(platform.machine() not in ("aarch64", "x86_64"), reason="no filter for this processor")
@pytest.mark.parametrize(
    "attempt",
    ["socket.socket()", "socket.socket(socket.AF_UNIX)", "os.execv('/bin/true', ['true'])"],
)
def test_network_and_programs_are_gone(attempt: str) -> None:
    answer = run(f"""
try:
    {attempt}
except PermissionError:
    print("denied" if filtered else "not filtered")
""")
    assert answer == "denied"


def test_what_decoding_needs_is_left() -> None:
    assert run("os.memfd_create('x'); print(len(open('/proc/self/statm').read()) > 0)") == "True"
