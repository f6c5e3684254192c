"""The engine: LiteRT in a process of its own, started once, checked before use, restarted when it dies.

Images go through one at a time: on CPUs a batch costs per image what one image costs (41 ms against
40 to 46 ms at batches of 2 to 16, one thread), so waiting to fill one gains nothing, and an image's
result never depends on its neighbours.
"""

import contextlib
import os
import queue
import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.heap import Arena
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np

from rayhook.fhir.errors import EngineUnavailable, ModelIntegrityError
from rayhook.inference.device import PROCESSOR
from rayhook.inference.litert import (
    EngineOutput,
    EngineSpecification,
    Runtime,
    export_all,
    export_litert,
    specify,
)
from rayhook.inference.preprocess import Float
from rayhook.inference.registry import ModelPackage
from rayhook.inference.tensorflow_runtime import open_runtime

__all__ = [
    "ENGINE_ENDED",
    "Engine",
    "EngineOutput",
    "InferenceEngine",
    "LocalEngine",
    "OnDemandEngine",
    "export_all",
    "export_litert",
]

ENGINE_ENDED: Final = "engine_ended"  # its process died, or was killed, with our images in hand

_SLOTS = 8
_READY = -1
_STALL_S = 10.0
_STOP_S = 2.0


class InferenceEngine(Protocol):
    """What runs a package's network: Engine in its own process, LocalEngine in this one, now or on demand."""

    @property
    def ready(self) -> bool: ...

    def run(self, batch: Float, timeout_s: float) -> EngineOutput: ...

    def close(self) -> None: ...


class LocalEngine:
    """The engine in this process, for commands and evaluation; calls run one after the other."""

    def __init__(self, package: ModelPackage, cache_dir: Path, *, threads: int = 1) -> None:
        self._runtime: Runtime | None = Runtime(specify(package, cache_dir, threads=threads))
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Return whether the engine passed its self-test and is open."""
        return self._runtime is not None

    def run(self, batch: Float, timeout_s: float) -> EngineOutput:  # noqa: ARG002
        """Return the outputs for images (n, s, s, 3); never times out.

        Raises EngineUnavailable once closed.
        """
        with self._lock:
            if self._runtime is None:
                raise EngineUnavailable("the inference engine is closed")
            rows = [self._runtime.infer(image) for image in batch]
            return self._runtime.specification.unpack(np.stack(rows))

    def close(self) -> None:
        """Free the network."""
        with self._lock:
            self._runtime = None


class OnDemandEngine:
    """A LocalEngine that is made when it is first asked: of many models a command often needs one."""

    def __init__(self, package: ModelPackage, cache_dir: Path, *, threads: int = 1) -> None:
        self._package, self._cache_dir, self._threads = package, cache_dir, threads
        self._engine: LocalEngine | None = None
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Return whether it has been asked and is open."""
        return self._engine is not None and self._engine.ready

    def run(self, batch: Float, timeout_s: float) -> EngineOutput:
        """Return the outputs for images (n, s, s, 3).

        Raises EngineUnavailable or ModelIntegrityError as making and running a LocalEngine does.
        """
        with self._lock:
            if self._engine is None:
                self._engine = LocalEngine(self._package, self._cache_dir, threads=self._threads)
        return self._engine.run(batch, timeout_s)

    def close(self) -> None:
        """Free the network."""
        if self._engine is not None:
            self._engine.close()


class Engine:
    """The engine in a process of its own, for any number of calling threads."""

    def __init__(self, specification: EngineSpecification) -> None:
        self._specification = specification
        self._memory = _SharedMemory(
            specification,
            _shared_floats(_SLOTS * int(np.prod(specification.input_shape))),
            _shared_floats(_SLOTS * specification.output_length),
        )
        self._lock = threading.Lock()
        self._closed = False
        self._process = _EngineProcess(self._memory)

    @classmethod
    def start(
        cls, package: ModelPackage, cache_dir: Path, *, threads: int = 1, device: str = PROCESSOR
    ) -> Self:
        """Return an engine whose process has been started and is warming up; export first if need be."""
        return cls(specify(package, cache_dir, threads=threads, device=device))

    @property
    def ready(self) -> bool:
        """Return whether the process lives and passed its self-test."""
        return not self._closed and self._process.ready

    @property
    def pid(self) -> int | None:
        """Return the process id of the engine."""
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> None:
        """Return once the engine is ready; raises what run would."""
        self._living().wait_ready(time.monotonic() + timeout_s)

    def run(self, batch: Float, timeout_s: float) -> EngineOutput:
        """Return the outputs for images (n, s, s, 3).

        Raises EngineUnavailable if the process dies or does not answer in time (the next call starts
        another), ModelIntegrityError if it is not what the manifest pins.
        """
        deadline = time.monotonic() + timeout_s
        process = self._living()
        process.wait_ready(deadline)
        answers = _submitted(process, batch, deadline)
        try:
            rows = [answer.result(max(0.0, deadline - time.monotonic())) for answer in answers]
        except TimeoutError as error:
            code = ENGINE_ENDED if process.kill_if_stalled() else None
            raise EngineUnavailable("the inference engine did not answer in time", code=code) from error
        return self._specification.unpack(np.stack(rows))

    def close(self) -> None:
        """Stop the process; calls under way fail with EngineUnavailable."""
        with self._lock:
            self._process.stop()
            if not self._closed:
                self._memory.close()
            self._closed = True

    def _living(self) -> "_EngineProcess":
        with self._lock:
            if self._closed:
                raise EngineUnavailable("the inference engine is closed")
            if self._process.is_dead:
                self._process.stop()
                self._process = _EngineProcess(self._memory)
            return self._process


@dataclass(frozen=True, slots=True)
class _SharedMemory:
    """Slots of one image each, seen by both processes."""

    specification: EngineSpecification
    raw_inputs: Arena
    raw_outputs: Arena

    def close(self) -> None:
        """Let no further process be given it; who has it mapped keeps it."""
        for memory in (self.raw_inputs, self.raw_outputs):
            os.close(memory.fd)

    def views(self) -> tuple[Float, Float]:
        """Return inputs (slots, s, s, 3) and outputs (slots, output_length) without a copy."""
        inputs = np.frombuffer(self.raw_inputs.buffer, np.float32)
        outputs = np.frombuffer(self.raw_outputs.buffer, np.float32)
        return inputs.reshape(_SLOTS, *self.specification.input_shape), outputs.reshape(_SLOTS, -1)


def _shared_floats(count: int) -> Arena:
    """Return memory of both processes that has no name on any disk: `RawArray` may have its file in a folder there."""
    size = count * np.dtype(np.float32).itemsize
    descriptor = os.memfd_create("rayhook-engine", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return Arena(size, descriptor)


class _EngineProcess:
    """One life of the engine's process: slots in flight, and a thread that hears its answers."""

    def __init__(self, memory: _SharedMemory) -> None:
        self._inputs, self._outputs = memory.views()
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(_SLOTS):
            self._free.put(slot)
        self._pending: dict[int, Future[Float]] = {}
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._failure: EngineUnavailable | ModelIntegrityError | None = None
        self._heard = time.monotonic()
        context = get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child, memory), daemon=True, name="rayhook-engine"
        )
        self._process.start()
        child.close()
        self._reader = threading.Thread(target=self._listen, daemon=True, name="rayhook-engine-answers")
        self._reader.start()

    @property
    def ready(self) -> bool:
        return self._started.is_set() and self._failure is None

    @property
    def is_dead(self) -> bool:
        """Return whether it died; one that failed its self-test would fail it again, and stays."""
        return isinstance(self._failure, EngineUnavailable)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def wait_ready(self, deadline: float) -> None:
        if not self._started.wait(max(0.0, deadline - time.monotonic())):
            raise EngineUnavailable("the inference engine is still starting")
        if self._failure is not None:
            raise _again(self._failure)

    def submit(self, image: Float, deadline: float) -> Future[Float]:
        """Put an image into a free slot, waiting for one, and return its answer to come."""
        try:
            slot = self._free.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty as error:
            self.kill_if_stalled()
            raise EngineUnavailable("the inference engine has no free slot in time") from error
        with self._lock:
            if slot is None or self._failure is not None:
                self._free.put(None)
                raise _again(self._failure or EngineUnavailable("the inference engine stopped"))
            if not self._pending:
                self._heard = time.monotonic()
            self._inputs[slot] = image
            answer = self._pending[slot] = Future()
            with contextlib.suppress(OSError):  # a broken pipe is heard by _listen, which fails the answer
                self._connection.send(slot)
        return answer

    def kill_if_stalled(self) -> bool:
        """Kill a process that has work and has said nothing for long, so that the next call restarts it."""
        is_stalled = bool(self._pending) and time.monotonic() - self._heard > _STALL_S
        if is_stalled:
            self._process.kill()
        return is_stalled

    def stop(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._reader.join()
        self._connection.close()

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                self._heard = time.monotonic()
                if isinstance(message, str):
                    self._fail(ModelIntegrityError(message))
                elif message == _READY:
                    self._started.set()
                else:
                    self._answer(message)
        except (EOFError, OSError):
            self._fail(EngineUnavailable("the inference engine stopped"))

    def _answer(self, slot: int) -> None:
        row = self._outputs[slot].copy()
        with self._lock:
            answer = self._pending.pop(slot)
        self._free.put(slot)
        answer.set_result(row)

    def _fail(self, failure: EngineUnavailable | ModelIntegrityError) -> None:
        with self._lock:
            self._failure = self._failure or failure
            pending, self._pending = self._pending, {}
        self._free.put(None)
        for answer in pending.values():
            answer.set_exception(_with_images_in_hand(self._failure))
        self._started.set()


def _submitted(process: _EngineProcess, batch: Float, deadline: float) -> list[Future[Float]]:
    """A process that dies before all images are in has some of them in hand already."""
    answers: list[Future[Float]] = []
    for image in batch:
        try:
            answers.append(process.submit(image, deadline))
        except EngineUnavailable as error:
            if answers and process.is_dead:
                raise EngineUnavailable(error.message, code=ENGINE_ENDED) from error
            raise
    return answers


def _serve(connection: Connection, memory: _SharedMemory) -> None:
    """Answer slots until told to stop, or until the parent is gone; runs in the engine's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runtime = open_runtime(memory.specification)
    except ModelIntegrityError as error:
        connection.send(error.message)
        return
    inputs, outputs = memory.views()
    with contextlib.suppress(EOFError, OSError):
        connection.send(_READY)
        while (slot := connection.recv()) is not None:
            outputs[slot] = runtime.infer(inputs[slot])
            connection.send(slot)


def _with_images_in_hand(
    failure: EngineUnavailable | ModelIntegrityError,
) -> EngineUnavailable | ModelIntegrityError:
    """One of these images may be why."""
    if isinstance(failure, ModelIntegrityError):
        return _again(failure)
    return EngineUnavailable(failure.message, code=ENGINE_ENDED)


def _again(failure: EngineUnavailable | ModelIntegrityError) -> EngineUnavailable | ModelIntegrityError:
    """Return the same failure as a new exception, so that threads do not share a traceback."""
    return type(failure)(failure.message)
