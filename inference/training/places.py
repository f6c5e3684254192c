"""Where a run finds and leaves things, and what it computes on; none of it changes the weights."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class StrategyName(StrEnum):
    """One device, all devices of this machine, or the machines that TF_CONFIG names."""

    SINGLE = "single"
    MIRRORED = "mirrored"
    MULTIWORKER = "multiworker"


@dataclass(frozen=True, slots=True)
class Places:
    """Folders and devices of a run.

    datasets: folder of the data sets.  output: folder of the run, which resumes what it holds.
    cache: of unpacked data sets and shards.  imagenet_weights: to start from.
    devices: logical CPU devices to make for `mirrored`, 0 for the devices that are there.
    tracking: URI of an MLflow server or store, "" for one beside the output.
    """

    datasets: Path
    output: Path
    imagenet_weights: Path
    cache: Path
    strategy: StrategyName = StrategyName.SINGLE
    devices: int = 0
    tracking: str = ""
