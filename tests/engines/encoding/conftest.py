"""The two encoder packs of the default set, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.engines.cores import Cores
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.engines.encoding.reranking import RerankEngine
from appliance.packs.manifest import read_manifest
from tests.packs_fixture import built_pack


@pytest.fixture(scope="session")
def cores() -> Cores:
    return Cores()


@pytest.fixture(scope="session")
def embedder(cores: Cores) -> Iterator[EmbeddingEngine]:
    pack = built_pack("bge-small-en-v1.5")
    engine = EmbeddingEngine(pack, read_manifest(pack), cores)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def reranker(cores: Cores) -> Iterator[RerankEngine]:
    pack = built_pack("ms-marco-minilm-l-12-v2")
    engine = RerankEngine(pack, read_manifest(pack), cores)
    yield engine
    engine.close()
