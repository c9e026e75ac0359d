"""The decoder's input tokens, made on the host: some twenty steps on a few numbers, each of which costs a device a
launch of its own. In numpy, which wakes no threads for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.adapters import Adapters
from wsisam_model.network import WsiSam
from wsisam_model.preprocessing import Floats
from wsisam_model.prompt_encoder import PADDING_KIND
from wsisam_model.prompt_tensors import FILLER_KIND
from wsisam_model.transformer import WIDTH


class InputTokens:
    """Tokens of prompts for a network and its adapters, whose weights it has copied."""

    def __init__(self, network: WsiSam, adapters: Adapters | None) -> None:
        self._side = network.prompt_encoder.image_size
        self._gamma = _array(network.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix)
        frozen = network.prompt_encoder.kind_table()
        trained = frozen if adapters is None else adapters.prompt.kind_table(frozen)
        kinds = torch.stack((trained, frozen))
        self._kinds = _array(torch.cat((kinds, kinds.new_zeros(2, 1, WIDTH)), dim=1))
        self._own = _array(network.mask_decoder.tokens(frozen[None, :0], None)[0])
        hf = [frozen.new_zeros(2, WIDTH)]
        if adapters is not None:
            hf = [adapters.hr.hf_token.weight, adapters.lr.hf_token.weight]
        self._hf = _array(torch.cat(hf))

    def __call__(
        self,
        coordinates: Floats,
        kinds: npt.NDArray[np.int64],
        *,
        lr: Sequence[bool],
        frozen: Sequence[bool],
    ) -> tuple[Tensor, Tensor]:
        """The tokens (R, T, 256) of `prompt_tensors.pad_prompts`, and which of them are tokens (R, T), on the CPU. `lr`
        and `frozen` are of each row.
        """
        rows, slots = kinds.shape
        own, is_frozen = len(self._own), np.array(frozen)
        tokens = np.empty((rows, own + 1 + slots, WIDTH), self._own.dtype)
        tokens[:, :own] = self._own
        tokens[:, own] = self._hf[np.array(lr, np.intp)] * ~is_frozen[:, None]
        tokens[:, own + 1 :] = self._kinds[is_frozen.astype(np.intp)[:, None], kinds]
        tokens[:, own + 1 :] += self._positions(coordinates) * (kinds < PADDING_KIND)[:, :, None]
        real = np.ones(tokens.shape[:2], np.bool_)
        real[:, own] = ~is_frozen
        real[:, own + 1 :] = kinds != FILLER_KIND
        return torch.from_numpy(tokens), torch.from_numpy(real)

    def _positions(self, coordinates: Floats) -> npt.NDArray[np.floating[Any]]:
        """`PromptEncoder.positions` of (R, N, 2) coordinates that have a place: (R, N, 256)."""
        x, y = np.moveaxis(2 * ((coordinates.astype(self._gamma.dtype) + 0.5) / self._side) - 1, -1, 0)[..., None]
        angles = 2 * math.pi * (x * self._gamma[0] + y * self._gamma[1])
        return np.concatenate((np.sin(angles), np.cos(angles)), axis=-1)


def _array(tensor: Tensor) -> npt.NDArray[np.floating[Any]]:
    return tensor.detach().cpu().numpy()
