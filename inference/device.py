"""Where a network may run: this machine's processor, or those GPUs that TensorFlow can use."""

from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from rayhook.fhir.errors import EngineUnavailable

PROCESSOR: Final = "cpu"
# Of NVIDIA's driver, of AMD's, and of Windows' Linux: without one of them there is nothing to ask for.
_NODES: Final = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
_ASKED_S: Final = 60.0


def find_gpus() -> tuple[str, ...]:
    """Return the GPUs by TensorFlow's names, as `GPU:0`; TensorFlow is asked in a process of its own."""
    return _ask_tensorflow() if any(node.exists() for node in _NODES) else ()


def choose_devices(wanted: str) -> tuple[str, ...]:
    """Return where to run: `cpu`, `gpu` (each there is), or `auto` (the GPUs, or else the processor).

    Raises EngineUnavailable where a GPU is wanted and there is none.
    """
    if wanted == PROCESSOR:
        return (PROCESSOR,)
    gpus = find_gpus()
    if wanted == "gpu" and not gpus:
        raise EngineUnavailable("TensorFlow finds no GPU on this machine")
    return gpus or (PROCESSOR,)


def _ask_tensorflow() -> tuple[str, ...]:
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell_gpus, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        found: tuple[str, ...] = ours.recv() if ours.poll(_ASKED_S) else ()
    except EOFError:
        found = ()
    finally:
        process.kill()
        process.join()
        ours.close()
    return found


def _tell_gpus(connection: Connection) -> None:
    import tensorflow as tf

    count = len(tf.config.list_physical_devices("GPU"))
    connection.send(tuple(f"GPU:{number}" for number in range(count)))
