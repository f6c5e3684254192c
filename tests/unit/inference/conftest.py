from collections.abc import Iterator
from pathlib import Path

import pytest

from rayhook.inference.decode import Decoder
from rayhook.inference.engine import LocalEngine
from rayhook.inference.registry import ModelPackage, load_models


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


@pytest.fixture(scope="session")
def flair() -> ModelPackage:
    """The bundled model for FLAIR slices."""
    return next(package for package in load_models() if package.manifest.id == "mri-flair-tumour")


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for exports that all tests of a worker share."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def local_engine(flair: ModelPackage, engine_cache: Path) -> Iterator[LocalEngine]:
    """The bundled model's engine in this process."""
    engine = LocalEngine(flair, engine_cache)
    yield engine
    engine.close()
