"""What adapters were made of: as a checkpoint keeps it, so that no other training goes on from there, and in the words
of their file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from wsisam_model.checkpoints import AdapterWeights
from wsisam_model.train.samples import Sample

NOT_STATED = "not stated"


def fingerprint_of(samples: Iterable[Sample], start: Mapping[str, Tensor], *, model: str, base_sha256: str) -> str:
    """Hex SHA-256 of what a training is made of beside its recipe: `samples` before they are copied, which are those
    that are not held out; the tensors that it starts from, and the frozen base.
    """
    digest = hashlib.sha256(f"{model}:{base_sha256}".encode())
    pixels: dict[int, bytes] = {}  # of a view's array, which several samples share
    for sample in samples:
        digest.update(repr((sample.object_id, sample.dataset, sample.group, sample.mpp)).encode())
        for view in (sample.hr, sample.lr):
            if id(view) not in pixels:
                pixels[id(view)] = hashlib.sha256(view.tobytes()).digest()
            digest.update(pixels[id(view)])
        digest.update(sample.mask.tobytes())
    for name, tensor in sorted(start.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def data_text(groups: Iterable[str], start: AdapterWeights | None) -> str:
    """The `data` of a file of adapters: `groups` (`DATASET/GROUP`), and what those that it went on from had seen."""
    text = ", ".join(sorted(set(groups)))
    if start is None:
        return text
    return f"{text}; from {start.name} (sha256 {start.sha256}): {start.metadata.get('data', NOT_STATED)}"


def licence_text(given: str | None, start: AdapterWeights | None) -> str:
    """The `licence` of a file of adapters: `given`, and that of those that it went on from."""
    if start is None:
        return given or NOT_STATED
    inherited = start.licence or NOT_STATED
    if given is None or given == inherited:
        return inherited
    return f"{given}; from {start.name}: {inherited}"


def groups_in(data: str, groups: Iterable[str]) -> list[str]:
    """Those of `groups` that a file's `data` (see `data_text`) names, so that its adapters have seen them."""
    return sorted(name for name in set(groups) if re.search(rf"(^|, |: ){re.escape(name)}($|, |; from )", data))
