"""Where a run computes: devices, number formats, and the same result each time."""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from rayhook.inference.training.places import StrategyName
from rayhook.inference.training.recipe import Precision

_BFLOAT16_CAPABILITY = 8
_CPU_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def make_strategy(name: StrategyName, *, devices: int = 0) -> tf.distribute.Strategy:
    """Return the strategy; `multiworker` waits until every worker of TF_CONFIG is there.

    Raises RuntimeError if devices are to be made after TensorFlow's first computation.
    """
    if name is StrategyName.MULTIWORKER:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name is StrategyName.SINGLE:
        return tf.distribute.get_strategy()
    if devices == 0:
        return tf.distribute.MirroredStrategy()
    _split_cpu(devices)
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(devices)])


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the one that writes."""
    return worker_index(strategy) == 0


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Return the position of this process among the workers."""
    resolver = strategy.cluster_resolver
    return int(resolver.task_id or 0) if resolver is not None else 0


def be_deterministic(seed: int) -> None:
    """Make every operation of this process give the same bits each time, and set all seeds."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed % 2**32)


def choose_precision(wanted: Precision) -> Precision:
    """Return the precision to compute in; see Precision for what auto means."""
    if wanted is not Precision.AUTO:
        return wanted
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capabilities = [tf.config.experimental.get_device_details(g).get("compute_capability") for g in gpus]
        modern = all(c is not None and c[0] >= _BFLOAT16_CAPABILITY for c in capabilities)
        return Precision.MIXED_BFLOAT16 if modern else Precision.MIXED_FLOAT16
    return Precision.MIXED_BFLOAT16 if _cpu_flags() & _CPU_BFLOAT16 else Precision.FLOAT32


def _cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this machine's CPU, none where Linux does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":")[2] for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").split())


def _split_cpu(devices: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    made: list[Any] = tf.config.get_logical_device_configuration(cpu) or []
    if len(made) != devices:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
