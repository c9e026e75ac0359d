"""A file of golden vectors: an npz whose keys say what it holds.

`{view}/{case}/in/…`, `…/out/…` and `{view}/inter/…` are inputs, results and intermediate maps, `adapter_high/`
and `adapter_low/` the adapters. Arrays named `…_sK` hold every K-th row and column, from 0.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.errors import CheckpointError
from wsisam_model.prompts import Prompt

Array = npt.NDArray[np.float32]


class Golden:
    """The arrays at `path`, all in memory. Raises `CheckpointError` if it is not an npz."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays: dict[str, npt.NDArray[np.generic]] = {key: file[key] for key in file.files}
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path.name}: not a readable file of golden vectors") from error
        self._thinned: dict[str, tuple[str, int]] = {}
        for key in self._arrays:
            parts = re.fullmatch(r"(.+)_s(\d+)", key)
            self._thinned[parts.group(1) if parts else key] = (key, int(parts.group(2)) if parts else 1)

    def __contains__(self, key: str) -> bool:
        return key in self._thinned

    def array(self, key: str) -> Array:
        """The array called `key`, thinned or not, as float32."""
        return self._arrays[self._stored(key)[0]].astype(np.float32)

    def stride(self, key: str) -> int:
        """K if only every K-th row and column of `key` is held, else 1."""
        return self._stored(key)[1]

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        """A view in uint8 RGB (H, W, 3)."""
        return self._arrays[self._stored(key)[0]].astype(np.uint8)

    def views(self) -> list[str]:
        """Names of the view pairs."""
        return sorted({key.split("/")[0] for key in self._arrays if key.endswith("/hr_view")})

    def cases(self, view: str) -> list[str]:
        """Names `{view}/{case}` of the cases on a view pair."""
        return sorted(
            {key.partition("/in/")[0] for key in self._arrays if key.startswith(f"{view}/") and "/in/" in key}
        )

    def prompts(self, case: str) -> list[Prompt]:
        """The case's prompts in HR view pixels, one for each row of its arrays."""
        inputs = {kind: self.array(f"{case}/in/{kind}") for kind in _INPUTS if f"{case}/in/{kind}" in self}
        rows = {len(array) for array in inputs.values()}
        if len(rows) != 1:
            raise CheckpointError(f"{self.name}: {case} has inputs for {sorted(rows)} prompts")
        return [_prompt({kind: array[row] for kind, array in inputs.items()}) for row in range(rows.pop())]

    def multimask(self, case: str) -> bool:
        """Whether the case asks for masks 1 to 3."""
        return bool(self.array(f"{case}/in/multimask"))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix`, float32, by the names after it."""
        found = {key: array for key, array in self._arrays.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): torch.from_numpy(array.astype(np.float32)) for key, array in found.items()}

    def error(self, key: str, value: Tensor | Array, *, channels_last: bool = False) -> float:
        """Largest absolute difference of `value`, whole, from the array `key`; infinite if the shapes differ.

        `channels_last`: the golden array is (H, W, C), `value` (C, H, W).
        """
        golden, stride = self.array(key), self.stride(key)
        ours = as_array(value)
        if channels_last:
            ours = ours.transpose(1, 2, 0)[::stride, ::stride]
        elif stride > 1:
            ours = ours[..., ::stride, ::stride]
        return float(np.abs(ours - golden).max(initial=0)) if ours.shape == golden.shape else float("inf")

    def mask_iou(self, key: str, logits: Array) -> float:
        """IoU of the masks of `logits` and of the logits `key`; 1 where both are empty."""
        stride = self.stride(key)
        mask, golden = logits[..., ::stride, ::stride] > 0, self.array(key) > 0
        union = np.count_nonzero(mask | golden)
        return np.count_nonzero(mask & golden) / union if union else 1.0

    def _stored(self, key: str) -> tuple[str, int]:
        if key not in self._thinned:
            raise CheckpointError(f"{self.name}: has no {key}")
        return self._thinned[key]


def as_array(value: Tensor | Array) -> Array:
    """A tensor of any device and precision as float32 numpy."""
    return value.float().cpu().numpy() if isinstance(value, Tensor) else value


_INPUTS = ("boxes", "points", "labels", "mask", "lr_mask")


def _prompt(inputs: dict[str, Array]) -> Prompt:
    box = inputs.get("boxes")
    points, labels = inputs.get("points", np.empty((0, 2))), inputs.get("labels", np.empty(0))
    return Prompt(
        box=None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        points=tuple((float(x), float(y)) for x, y in points),
        labels=tuple(int(label) for label in labels),
        mask_hr=inputs["mask"][0] if "mask" in inputs else None,
        mask_lr=inputs["lr_mask"][0] if "lr_mask" in inputs else None,
    )
