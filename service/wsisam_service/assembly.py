"""The one place that builds a service or a worker from its settings. Torch comes in with a model in this process."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI

from wsisam_service import metrics
from wsisam_service.access.issuer import IssuerError
from wsisam_service.access.keys import KeyFileError, read_keys
from wsisam_service.access.opening import access_notes
from wsisam_service.app import create_app
from wsisam_service.cluster.remote_executor import RemoteExecutor
from wsisam_service.cluster.worker import create_worker
from wsisam_service.execution.backend import AdapterFacts, PredictorBackend
from wsisam_service.execution.executor import LocalExecutor
from wsisam_service.execution.memory import keep_large_blocks_apart
from wsisam_service.jobs import NO_ADAPTERS, Executor
from wsisam_service.sam.weights import Install
from wsisam_service.settings import MIB, Settings, SettingsError, without_password
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.stores.embeddings import TieredStore
from wsisam_service.stores.encryption import parse_keys
from wsisam_service.stores.opening import open_store

REFINE_MEMORY_BYTES, REFINE_FOLDER_BYTES = 64 * MIB, 256 * MIB
"""Budgets of refine states, a quarter of a megabyte each."""
ENCODE_BATCH = {"cpu": 1, "cuda": 8}
DECODE_BATCH = {"cpu": 1, "cuda": 64}
"""Items of one device call: CPU cores gain nothing from batches (docs/PERFORMANCE.md). A GPU encodes 4 % more views a
second in batches of 32 than of 8, and a click would wait four times as long for the one that runs.
"""


@dataclass(frozen=True, slots=True)
class Service:
    """A service ready to be served, and what its operator should read first."""

    app: FastAPI
    notes: tuple[str, ...]


def build_service(settings: Settings) -> Service:
    """The whole gateway, with its executor in this process or behind `worker_url`.

    Raises what `open_catalogue`, `load_backend` and `build_executor` raise.
    """
    catalogue = open_catalogue(settings)  # before the model, which takes longer
    executor: Executor
    install_weights: Install | None = None
    if settings.worker_url:
        token = settings.worker_token.get_secret_value()
        executor = RemoteExecutor(
            settings.worker_url, token, timeout_s=settings.request_timeout_s, tls=_tls_to_workers(settings)
        )
        notes: tuple[str, ...] = (f"the model runs behind {without_password(settings.worker_url)}",)
    else:
        backend = load_backend(settings)
        local = build_executor(settings, backend)
        executor, notes, install_weights = local, notes_of(backend), weights_installer(settings, local)
    try:
        app = create_app(settings, catalogue, executor, install_weights)
        keys = None if settings.keys is None else read_keys(settings.keys)
    except KeyFileError as error:
        raise SettingsError(f"setting keys: {error}") from error
    except IssuerError as error:
        raise SettingsError(f"setting oidc_issuer: {error}") from error
    return Service(app, (*notes, *access_notes(keys, settings.oidc_issuer, catalogue.root_names)))


def open_catalogue(settings: Settings) -> Catalogue:
    """The slides of `settings`. Raises `SettingsError` for a root of an unknown kind, and for a PACS whose certificate
    or password cannot be read.
    """
    try:
        return Catalogue(
            settings.slides,
            tile_cache_bytes=settings.tile_cache_bytes,
            open_slides=settings.open_slides,
            pacs=settings.pacs,
        )
    except OSError as error:
        raise SettingsError(f"setting pacs: {error}") from error
    except (ValueError, ImportError) as error:  # as fsspec says it
        raise SettingsError(f"setting slides: {error}") from error


def _tls_to_workers(settings: Settings) -> ssl.SSLContext | None:
    """None where the system's authorities will do. Raises `SettingsError`."""
    if settings.worker_ca is None and settings.worker_certificate is None:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.worker_ca)
        if settings.worker_certificate is not None:
            context.load_cert_chain(settings.worker_certificate)
    except OSError as error:
        raise SettingsError(f"setting worker_ca or worker_certificate: {error}") from error
    return context


def build_worker(settings: Settings) -> Service:
    """The executor behind HTTP. Raises what `load_backend` and `build_executor` raise."""
    backend = load_backend(settings)
    return Service(create_worker(settings, build_executor(settings, backend)), notes_of(backend))


def weights_installer(settings: Settings, executor: LocalExecutor[Any, Any]) -> Install:
    """What serves weights that QuPath's extension registers: the frozen SAM, as no adapters were trained on them."""

    async def install(model: str, path: Path) -> None:
        alone: dict[str, Any] = {"adapters": NO_ADAPTERS, "own_adapters": ()}
        wanted = settings.model_copy(update={"model": model, "weights": path, **alone})
        executor.add(await asyncio.to_thread(load_backend, wanted))

    return install


def load_backend(settings: Settings) -> PredictorBackend:
    """The model of `settings` on its device. Raises `UnknownModelError`, `CheckpointError`."""
    keep_large_blocks_apart()  # before torch, whose blocks they are
    from wsisam_model import load_model

    predictor = load_model(
        settings.model,
        adapters=settings.adapters,
        own_adapters=settings.own_adapters,
        device=settings.device,
        precision=settings.precision,
        engine=settings.engine,
        engine_cache=settings.engine_cache,
        weights=settings.weights,
        threads=settings.threads,
    )
    if predictor.device.startswith("cuda"):
        _watch_device_memory(predictor.device)
    return PredictorBackend(predictor, settings.store_format)


def _watch_device_memory(device: str) -> None:
    import torch

    def used() -> float:
        free, total = torch.cuda.mem_get_info(device)
        return float(total - free)

    metrics.DEVICE_MEMORY.labels("used").set_function(used)
    metrics.DEVICE_MEMORY.labels("total").set(torch.cuda.mem_get_info(device)[1])


def build_executor(settings: Settings, backend: PredictorBackend) -> LocalExecutor[Any, Any]:
    """The executor around `backend`. Raises `SettingsError` for a store that cannot be opened."""
    kind = "cuda" if backend.device.startswith("cuda") else "cpu"
    return LocalExecutor(
        [backend],
        _open_store(settings, "emb", settings.store_memory_bytes, settings.store_folder_bytes, settings.store_ttl_s),
        _open_store(settings, "refine", REFINE_MEMORY_BYTES, REFINE_FOLDER_BYTES, settings.refine_ttl_s),
        l1_bytes=settings.l1_bytes,
        max_encodes=settings.max_encodes,
        max_decodes=settings.max_decodes,
        encode_batch=ENCODE_BATCH[kind],
        decode_batch=DECODE_BATCH[kind],
    )


def _open_store(
    settings: Settings, namespace: Literal["emb", "refine"], memory_bytes: int, folder_bytes: int, ttl_s: int
) -> TieredStore:
    try:
        return open_store(
            settings.store,
            namespace=namespace,
            memory_bytes=memory_bytes,
            folder_bytes=folder_bytes,
            ttl_s=ttl_s,
            keys=parse_keys(settings.store_keys.get_secret_value()),
        )
    except (ValueError, OSError) as error:
        raise SettingsError(f"setting store: {error}") from error


def notes_of(backend: PredictorBackend) -> tuple[str, ...]:
    """Model, engine, and what the adapters are and may be used for."""
    model = f"model {backend.config.name} on {backend.device}, engine {backend.engine}, precision {backend.precision}"
    adapters = backend.adapters
    if adapters is None:
        told = ["no adapters: every answer is the frozen SAM's and says so"]
    else:
        told = [_described(adapters)]
        told += [f"{_described(own)}, {_where(own)}" for own in backend.own_adapters]
    return (model, *told, *(f"warning: {warning}" for warning in backend.warnings))


def _described(adapters: AdapterFacts) -> str:
    return f"adapters {adapters.name}, SHA-256 {adapters.sha256[:12]}, licence {adapters.licence}"


def _where(own: AdapterFacts) -> str:
    if own.knows_tissue:
        return "for tissue like that of its training"
    return "only where a request names it: the file does not say how its training views look"
