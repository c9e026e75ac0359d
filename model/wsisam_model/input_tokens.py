"""The decoder's input tokens, made on the host: some twenty steps on a few numbers, each of which costs a device a
launch of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsisam_model.adapters import Adapters
from wsisam_model.network import WsiSam
from wsisam_model.preprocessing import Floats
from wsisam_model.prompt_encoder import WIDTH
from wsisam_model.prompt_tensors import FILLER_KIND


class InputTokens:
    """Tokens of prompts for a network and its adapters, whose weights it has copied."""

    def __init__(self, network: WsiSam, adapters: Adapters | None) -> None:
        self._encoder = copy.deepcopy(network.prompt_encoder).cpu()
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
        places = torch.from_numpy(coordinates.astype(self._own.dtype, copy=False))
        tokens[:, own + 1 :] = self._encoder.positions(places, torch.from_numpy(kinds)).numpy()
        tokens[:, own + 1 :] += self._kinds[is_frozen.astype(np.intp)[:, None], kinds]
        real = np.ones(tokens.shape[:2], np.bool_)
        real[:, own] = ~is_frozen
        real[:, own + 1 :] = kinds != FILLER_KIND
        return torch.from_numpy(tokens), torch.from_numpy(real)


def _array(tensor: Tensor) -> npt.NDArray[np.floating[Any]]:
    return tensor.detach().cpu().numpy()
