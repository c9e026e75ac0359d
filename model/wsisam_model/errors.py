"""Errors of the model package. Torch-free; the service maps them to problem documents."""

from __future__ import annotations


class ModelError(Exception):
    """Base of every error this package raises on purpose."""


class UnknownModelError(ModelError):
    """A model or adapters name that the registry does not offer."""


class CheckpointError(ModelError):
    """A weights file that is missing, truncated, of another model, or whose tensors do not fit. Names the key."""


class PromptError(ModelError):
    """A prompt the network cannot take: no box, point or mask, or labels that do not match the points."""
