"""Whatever is decoded into somewhere is ready before threads are: the first use by two at once would end the process."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from rayhook.deploy.decoded_types import make_ready
from tests.conftest import ROOT

PACKAGES = ("audit", "auth", "cds_hooks", "deploy", "fhir", "inference", "smart_app")
DECODING = frozenset({"msgspec.convert", "msgspec.json.decode", "msgspec.msgpack.decode"})
TOGETHER = """
import sys, threading
sys.setswitchinterval(1e-6)
import rayhook.deploy.app
from rayhook.deploy.decoded_types import make_ready
types = sorted(make_ready(), key=repr)
import msgspec
def decode(one, barrier):
    barrier.wait()
    try:
        msgspec.json.decode(b"{}", type=one)
    except msgspec.ValidationError:
        pass
for one in types:
    barrier = threading.Barrier(6)
    threads = [threading.Thread(target=decode, args=(one, barrier)) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(len(types))
"""


def decoded_names(path: Path) -> set[str]:
    """Return the names of the types that a file decodes into."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in DECODING:
            continue
        told = [keyword.value for keyword in node.keywords if keyword.arg == "type"]
        if not told and ast.unparse(node.func) == "msgspec.convert":
            told = node.args[1:2]
        found |= {one.id for type_ in told for one in ast.walk(type_) if isinstance(one, ast.Name)}
    return found


def decoded_types() -> set[type]:
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "training" in path.parts or "node_modules" in path.parts or "versions" in path.parts:
                continue
            names = decoded_names(path)
            if not names:
                continue
            name = ".".join(["rayhook", *path.relative_to(ROOT).with_suffix("").parts])
            module = importlib.import_module(name)
            found |= {getattr(module, one) for one in names if isinstance(getattr(module, one, None), type)}
    return {one for one in found if one.__module__.startswith("rayhook.")}


def test_every_type_that_is_decoded_into_is_ready():
    wanted = decoded_types()
    assert len(wanted) > 10
    assert wanted - make_ready() == set()


@pytest.mark.timeout(120)
def test_threads_may_decode_into_a_type_at_once():
    ran = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr[-500:]
    assert int(ran.stdout) > 10
