"""An analyser for one's own files, without a database or an EHR."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rayhook.deploy.settings import default_engine_cache
from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.engine import LocalEngine
from rayhook.inference.registry import load_models


@contextmanager
def local_analyser(*, threads: int = 1) -> Iterator[Analyser]:
    """Yield an analyser over the bundled models, with the engine in this process."""
    with ExitStack() as stack:
        decoder = stack.enter_context(Decoder())
        packages = load_models()
        engines = {}
        for package in packages:
            engine = LocalEngine(package, default_engine_cache(), threads=threads)
            stack.callback(engine.close)
            engines[package.manifest.id] = engine
        yield Analyser(packages, engines, decoder)
