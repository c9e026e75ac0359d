"""What models and adapters are, as `/v1/info` shows it and gateways plan with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wsisam_service.execution.backend import AdapterFacts, Backend


def executor_facts(backends: Sequence[Backend[Any, Any]]) -> dict[str, Any]:
    """See `jobs.Executor.info`; the first of `backends` is the default model."""
    first = backends[0]
    return {
        "models": [_model_facts(backend) for backend in backends],
        "device": first.device,
        "precision": first.precision,
        "engine": first.engine,
        "warnings": [warning for backend in backends for warning in backend.warnings],
    }


def _model_facts(backend: Backend[Any, Any]) -> dict[str, Any]:
    config, adapters = backend.config, backend.adapters
    return {
        "name": config.name,
        "key_prefix": backend.key_prefix,
        "image_size": config.image_size,
        "trained_prompts": sorted(config.trained_prompts),
        "multimask": config.multimask,
        "default_mpp": config.default_mpp,
        "point_mpp": config.point_mpp,
        "adapters": None if adapters is None else _adapter_facts(adapters),
        "own_adapters": [{**_adapter_facts(own), "knows_tissue": own.knows_tissue} for own in backend.own_adapters],
    }


def _adapter_facts(adapters: AdapterFacts) -> dict[str, Any]:
    return {
        "name": adapters.name,
        "sha256": adapters.sha256,
        "licence": adapters.licence,
        "trained_prompts": list(adapters.prompts),
    }
