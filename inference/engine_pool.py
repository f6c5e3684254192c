"""Several engines of one model, each on a device of its own."""

import threading
import time
from collections.abc import Sequence

from rayhook.inference.engine import Engine
from rayhook.inference.litert import EngineOutput
from rayhook.inference.preprocess import Float


class EnginePool:
    """Gives each batch to the engine that has the fewest in hand."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._in_hand = [0] * len(self._engines)
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        return all(engine.ready for engine in self._engines)

    def wait_ready(self, timeout_s: float) -> None:
        """Return once every engine is ready; raises what run would."""
        deadline = time.monotonic() + timeout_s
        for engine in self._engines:
            engine.wait_ready(max(0.0, deadline - time.monotonic()))

    def run(self, batch: Float, timeout_s: float) -> EngineOutput:
        """Raise as Engine.run does."""
        with self._lock:
            chosen = min(range(len(self._engines)), key=self._in_hand.__getitem__)
            self._in_hand[chosen] += 1
        try:
            return self._engines[chosen].run(batch, timeout_s)
        finally:
            with self._lock:
                self._in_hand[chosen] -= 1

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
