"""A disk of a few MiB that fills up while studies are analysed, and has room again."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.faults.account import settle
from tests.faults.cluster import Cluster, describe, running_alone, wait_for
from tests.faults.studies import patient_id

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

STUDIES = 40
_SIZE_MIB = 24
_RECOVERY_S = 60.0


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a tmpfs; only root may."""
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        absent("the right to mount a tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left, to the last byte."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for piece in (1 << 16, 1 << 9, 1):
            try:
                while True:
                    file.write(b"\0" * piece)
            except OSError:
                continue
    return ballast


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """The embedded service: its database, its keys, its anchor and its temporary files are all on the small disk."""
    folder = tmp_path_factory.mktemp("disk")
    with small_disk(folder / "data") as disk:
        temporary = disk / "tmp"
        temporary.mkdir()
        with running_alone(folder, studies=STUDIES, TMPDIR=str(temporary)) as running:
            yield running


def test_a_full_disk_costs_no_study(cluster: Cluster) -> None:
    ahead = [patient_id(n) for n in range(10)]
    for patient in ahead[:5]:
        assert cluster.view(patient)["taken"]
    ballast = fill(cluster.folder / "data")
    answers = [cluster.view(patient) for patient in ahead[5:]]
    until = time.monotonic() + 10.0
    while time.monotonic() < until:
        answers.append(cluster.view(ahead[-1]))
        time.sleep(1.0)
    ballast.unlink()
    for patient in ahead:
        wait_for(
            lambda patient=patient: cluster.view(patient)["taken"], 30.0, "the service to take on work again"
        )
    wait_for(lambda: not settle(cluster.entries()).lost, _RECOVERY_S, f"reports\n{describe(cluster)}")
    refused = [answer for answer in answers if not answer["taken"]]
    assert refused, "the disk was never full"
    assert all("503" in str(answer["error"]) for answer in refused), refused
    assert settle(cluster.entries()).is_settled
    assert cluster.api.is_running
