"""The models this box serves: every installed pack that has an engine, loaded in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Literal, TypeVar

from appliance.config import Settings
from appliance.engines.cores import Cores
from appliance.gateway.engines import SERVED_TASKS, Engine, close_engine, open_engine
from appliance.gateway.errors import ModelBrokenError, ModelLoadingError, ModelNotFoundError, WrongTaskError
from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest, Task
from appliance.packs.store import PackStore

log = logging.getLogger(__name__)

E = TypeVar("E")

LOADING_RETRY_SECONDS = 5
BROKEN_RETRY_SECONDS = 60
# What each task is good for, in the words of the refusal when it is asked for another.
ABILITIES: dict[Task, str] = {
    "chat": "chat completions",
    "embedding": "embeddings",
    "rerank": "reranking",
    "transcription": "transcription",
}


class ServedModel:
    """One pack and its engine: None while it loads; ``error`` says why it never will.

    ``installation`` is the inode of its directory: another one, though the same version, was installed since.
    """

    def __init__(self, manifest: Manifest, installation: int) -> None:
        self.manifest = manifest
        self.installation = installation
        self.engine: Engine | None = None
        self.error: str | None = None
        self.loading: asyncio.Task[None] | None = None

    @property
    def state(self) -> Literal["loading", "ready", "failed"]:
        """Whether requests can be served now; a speech worker that died is loading again."""
        if self.error is not None:
            return "failed"
        return "ready" if self.engine is not None and getattr(self.engine, "ready", True) else "loading"


class Catalog:
    """The served models by name. Used on the event loop only."""

    def __init__(self, packs: PackStore, cores: Cores, settings: Settings) -> None:
        self._packs = packs
        self._cores = cores
        self._settings = settings
        self._models: dict[str, ServedModel] = {}
        self._left_out: dict[str, str] = {}
        self._refreshing = asyncio.Lock()

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Have the next ``refresh`` take these packs in as failed, for these reasons, and not load them."""
        self._left_out = dict(reasons)

    async def refresh(self) -> None:
        """Take in what is installed now: start loading new packs, close the engines of packs that left.

        One that failed is loaded again when it was installed again.
        """
        async with self._refreshing:
            installed = await asyncio.to_thread(self._installed)
            for name in sorted(self._models.keys() | installed.keys()):
                old, model = self._models.get(name), installed.get(name)
                if (
                    old is not None
                    and model is not None
                    and old.manifest == model.manifest
                    and (old.state != "failed" or old.installation == model.installation)
                ):
                    continue
                if model is None:
                    del self._models[name]
                else:
                    # In place before the old one is closed: requests meanwhile are told to come back.
                    self._models[name] = model
                if old is not None:
                    await self._unload(old)
                if model is not None and name in self._left_out:
                    model.error = self._left_out[name]
                elif model is not None:
                    model.loading = asyncio.create_task(self._load(model), name=f"load {name}")
            self._left_out = {}

    async def close(self) -> None:
        """Stop every engine."""
        models, self._models = list(self._models.values()), {}
        for model in models:
            await self._unload(model)

    def find(self, name: str) -> ServedModel:
        """Return the model of that name. Raises ModelNotFoundError."""
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(name, sorted(self._models))
        return model

    def names(self) -> Collection[str]:
        """Return the names of the served packs."""
        return self._models.keys()

    def engine(self, model: ServedModel, kind: type[E], task: Task) -> E:
        """Return the model's engine, which must be of ``task``.

        Raises WrongTaskError, or ModelLoadingError / ModelBrokenError (503) while there is none.
        """
        manifest = model.manifest
        if manifest.task != task:
            raise WrongTaskError(
                f"The model `{manifest.name}` does not support {ABILITIES[task]}.", param="model"
            )
        if model.error is not None:
            raise ModelBrokenError(
                f"The model `{manifest.name}` could not be loaded; the log has the reason.",
                retry_after=BROKEN_RETRY_SECONDS,
            )
        if not isinstance(model.engine, kind):
            raise ModelLoadingError(
                f"The model `{manifest.name}` is being loaded.", retry_after=LOADING_RETRY_SECONDS
            )
        return model.engine

    def run_seconds(self) -> float:
        """Return for how long a model's run has had the cores; 0 while none does."""
        return self._cores.run_seconds or 0.0

    def models(self) -> list[ServedModel]:
        """Return the served models, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def ready(self) -> bool:
        """Whether nothing is being loaded any more."""
        return all(model.state != "loading" for model in self._models.values())

    def _installed(self) -> dict[str, ServedModel]:
        found = {}
        for pack in self._packs.list():
            if pack.manifest is not None and pack.manifest.task in SERVED_TASKS:
                with suppress(FileNotFoundError):  # removed just now
                    found[pack.name] = ServedModel(pack.manifest, pack.directory.stat().st_ino)
        return found

    async def _load(self, model: ServedModel) -> None:
        manifest = model.manifest
        started = time.monotonic()
        try:
            engine = await self._open(manifest)
        except Exception as error:
            # Whatever is wrong with it, the box goes on without this model; requests for it say so.
            model.error = str(error)
            log.exception("model %s could not be loaded", manifest.name)
            return
        model.engine = engine
        log.info("model %s loaded in %.2f s", manifest.name, time.monotonic() - started)
        if self.ready():
            log.info("all models are loaded")

    async def _open(self, manifest: Manifest) -> Engine:
        # Files that changed since they were last checked are hashed again.
        verified = await asyncio.to_thread(self._packs.verify, manifest.name, cached=True)
        if verified != manifest:
            # The refresh that follows its installation takes the new version in.
            raise PackError(f"pack {manifest.name} was replaced while it was being loaded")
        directory = await asyncio.to_thread(self._packs.directory, manifest.name)
        return await open_engine(directory, manifest, self._cores, self._settings)

    async def _unload(self, model: ServedModel) -> None:
        if model.loading is not None:
            await asyncio.wait([model.loading])
        if model.engine is not None:
            await close_engine(model.engine)
