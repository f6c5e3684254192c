"""The network as TensorFlow runs it, on a GPU: built from the pinned weights, self-tested."""

import os
from typing import Any, Final

import numpy as np

from rayhook.fhir.errors import ModelIntegrityError
from rayhook.inference.litert import EngineSpecification, Runtime, build_network, golden_input
from rayhook.inference.model import assign_weights, serving_model
from rayhook.inference.preprocess import Float
from rayhook.inference.registry import ModelPackage

_OUTPUTS: Final = ("logits", "features", "early", "cam")
_GOLDEN_TOLERANCE: Final = 1e-3


class TensorFlowRuntime:
    """One network on one device of TensorFlow's, as `GPU:0`."""

    def __init__(self, specification: EngineSpecification, package: ModelPackage) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        self.specification = specification
        self._device = f"/{specification.device}"
        is_gpu = specification.device.startswith("GPU")
        if is_gpu:
            for gpu in tf.config.list_physical_devices("GPU"):
                # The engines of several models share it.
                tf.config.experimental.set_memory_growth(gpu, enable=True)
        # Its ten bits of mantissa would be seen in a calibrated probability.
        tf.config.experimental.enable_tensor_float_32_execution(enabled=False)
        with tf.device(self._device):
            network = build_network(package.manifest)
            assign_weights(network, package.weights())
            model = serving_model(network)
        self._run: Any = tf.function(lambda image: model(image, training=False), jit_compile=is_gpu)
        logits = self.infer(golden_input(specification.input_size))[: specification.labels]
        if not np.allclose(logits, specification.golden_logits, rtol=0.0, atol=_GOLDEN_TOLERANCE):
            raise ModelIntegrityError("the engine's answer to the golden input is not the manifest's")

    def infer(self, image: Float) -> Float:
        """Return one image's outputs, flat (output_length,)."""
        import tensorflow as tf

        with tf.device(self._device):
            output = self._run(image[np.newaxis])
        return np.concatenate([output[name].numpy().ravel() for name in _OUTPUTS])


def open_runtime(specification: EngineSpecification) -> Runtime | TensorFlowRuntime:
    """Return what runs the network where the specification says. Raises ModelIntegrityError as either does."""
    if specification.package is None:
        return Runtime(specification)
    return TensorFlowRuntime(specification, specification.package)
