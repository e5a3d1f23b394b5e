"""The models of a server: which there are, which are loaded, and whose turn it is to make room."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from paceline.errors import ConfigError, PacelineError
from paceline.results import Load
from paceline.serve.backend import Backend, Model
from paceline.serve.failures import ApiError, internal, unavailable
from paceline.serve.settings import ModelSettings


class _Entry:
    """A model: how it is served, and its engine, if it is loaded."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.backend: Backend | None = None
        self.task: asyncio.Task[None] | None = None
        self.used = 0.0

    @property
    def state(self) -> str:
        """For people."""
        return "unloaded" if self.backend is None else self.backend.state

    @property
    def idle(self) -> bool:
        """Whether the engine could be ended without harm."""
        return self.backend is not None and self.backend.state != "starting" and not self.backend.in_flight

    def load(self) -> tuple[Backend, asyncio.Task[None]]:
        """The engine and its supervision, started now unless they were."""
        if self.backend is None or self.task is None:
            settings = self.settings
            self.backend = Backend(settings.build, capacity=settings.build.max_batch + settings.max_waiting)
            self.task = asyncio.create_task(self.backend.run())
        return self.backend, self.task

    async def unload(self) -> None:
        """End the engine."""
        task, self.task, self.backend = self.task, None, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, PacelineError):
                await task


class Fleet:
    """Several models, each with an engine process of its own.

    models  {the name that clients use: how it is served}
    memory  bytes that loaded models may take together, by what their settings say; None: no limit. The
            model that was not used for longest, and has no requests, makes room

    Raises ConfigError for a limit that a model does not say its share of, or that it is too large for.
    """

    def __init__(self, models: Mapping[str, ModelSettings], memory: int | None = None) -> None:
        for name, settings in models.items():
            if memory is not None and not 0 < settings.memory <= memory:
                raise ConfigError(
                    f"model {name}: memory is {settings.memory} bytes, allowed: 1 to that of all models, "
                    f"{memory}"
                )
        self._entries = {name: _Entry(settings) for name, settings in models.items()}
        self._memory = memory
        self._making_room = asyncio.Lock()
        self._created = int(time.time())
        self._started = False

    @property
    def names(self) -> Sequence[str]:
        """Of all models."""
        return list(self._entries)

    async def start(self) -> None:
        """Load the models that are to be there from the start. Raises PacelineError if one cannot be."""
        first = [entry for entry in self._entries.values() if entry.settings.preload]
        await asyncio.gather(*(self._loaded(entry) for entry in first))
        self._started = True

    async def stop(self) -> None:
        """End all engines."""
        await asyncio.gather(*(entry.unload() for entry in self._entries.values()))

    async def ready(self, name: str | None) -> tuple[Backend, Model]:
        """A model and its engine, loaded if need be; None: the only model there is.

        Raises ApiError: 404 for a model that is not served, 503 for one that cannot be asked now, 500 for
        one that cannot be loaded.
        """
        if name is None and len(self._entries) == 1:
            (name,) = self._entries
        entry = self._entries.get(name or "")
        if entry is None:
            raise self._no_such(name)
        entry.used = time.monotonic()
        backend = entry.backend
        if backend is None or (backend.state == "starting" and self._started):
            try:
                backend = await self._loaded(entry)
            except PacelineError as error:
                raise internal(f"the model cannot be loaded: {error}") from None
        if backend.model is None:
            raise backend.down()
        return backend, backend.model

    async def _loaded(self, entry: _Entry) -> Backend:
        async with self._making_room:
            if entry.backend is None:
                await self._make_room(entry)
            backend, task = entry.load()
        waiting = asyncio.ensure_future(backend.loaded())
        try:
            await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                if entry.task is task:
                    entry.task = entry.backend = None
                task.result()  # raises what went wrong
        finally:
            waiting.cancel()
        return backend

    async def _make_room(self, entry: _Entry) -> None:
        if self._memory is None:
            return
        loaded = [other for other in self._entries.values() if other.backend is not None]
        taken = sum(other.settings.memory for other in loaded)
        idle = [other for other in loaded if other.idle]
        for other in sorted(idle, key=lambda one: one.used):
            if taken + entry.settings.memory <= self._memory:
                break
            taken -= other.settings.memory
            await other.unload()
        if taken + entry.settings.memory > self._memory:
            raise unavailable("other models are in use, there is no room for this one", "models_busy")

    def fail_all(self, error: ApiError) -> None:
        """End what all engines have in work."""
        for entry in self._entries.values():
            if entry.backend is not None:
                entry.backend.fail_all(error)

    def states(self) -> dict[str, Any]:
        """{model: what its engine does}."""
        states: dict[str, Any] = {}
        for name, entry in self._entries.items():
            states[name] = {"state": entry.state}
            if entry.backend is not None:
                load = entry.backend.load
                states[name] |= {
                    "running": load.running,
                    "waiting": load.waiting,
                    "restarts": entry.backend.restarts,
                    "drafters_off": sorted(load.drafters_off),
                }
        return states

    def health(self) -> str:
        """ "ok", or what is wrong."""
        if any(entry.state == "restarting" for entry in self._entries.values()):
            return "an engine ended and is being started again"
        return "ok" if self._started else "a model is being loaded"

    def loads(self) -> dict[str, tuple[Load, int]]:
        """{loaded model: (what its engine said of itself, how often it was started again)}."""
        return {
            name: (entry.backend.load, entry.backend.restarts)
            for name, entry in self._entries.items()
            if entry.backend is not None
        }

    def listed(self, only: str | None = None) -> Sequence[dict[str, Any]]:
        """The models as /v1/models lists them, or one of them. Raises ApiError if there is no such model."""
        if only is not None and only not in self._entries:
            raise self._no_such(only)
        return [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "paceline",
                "root": entry.settings.build.model,
                "max_model_len": None
                if entry.backend is None or entry.backend.model is None
                else entry.backend.model.info.max_positions,
            }
            for name, entry in self._entries.items()
            if only in (None, name)
        ]

    def _no_such(self, name: str | None) -> ApiError:
        said = "name a model" if name is None else f"there is no model {name[:60]!r}"
        return ApiError(
            f"{said}; there are {', '.join(self._entries)}",
            status=404,
            code="model_not_found",
            param="model",
        )
