"""An analyser for one's own files, without a database or an EHR."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rayhook.deploy.settings import default_engine_cache
from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.engine import OnDemandEngine
from rayhook.inference.registry import load_models, select_models


@contextmanager
def local_analyser(models: Sequence[str] = (), *, threads: int = 1) -> Iterator[Analyser]:
    """Yield an analyser over the models named, else those enabled, with the engines in this process.

    An engine is made when the first image for it comes.

    Raises NotFound if no model is installed under one of the ids.
    """
    packages = select_models(load_models(), models)
    with ExitStack() as stack:
        decoder = stack.enter_context(Decoder())
        engines = {}
        for package in packages:
            engine = OnDemandEngine(package, default_engine_cache(), threads=threads)
            stack.callback(engine.close)
            engines[package.manifest.id] = engine
        yield Analyser(packages, engines, decoder)
