"""The command `wsisam` with a stand-in for the network, for tests of many processes: starts at once, costs no CPU.

Its masks show the pixels of the views that they were made from, so that an answer from another view is noticed. Encodes
and decodes take the seconds in WSISAM_TEST_ENCODE_S and WSISAM_TEST_DECODE_S; an embedding is as large as LiteMedSAM's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsisam_model.config import MODELS
from wsisam_service import assembly
from wsisam_service.cli import main
from wsisam_service.execution.backend import DecodeItem, Logits
from wsisam_service.jobs import ViewPixels
from wsisam_service.settings import Settings

ENCODE_S = float(os.environ.get("WSISAM_TEST_ENCODE_S", "0.05"))
DECODE_S = float(os.environ.get("WSISAM_TEST_DECODE_S", "0.004"))
BLOB_BYTES = 3_400_000
GRID = 256

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class GreyView:
    """The "embedding" of a view, and what the "decoder" looks at: its brightness, uint8 (256, 256)."""

    grey: Grey
    view_size: tuple[int, int] = (GRID, GRID)
    nbytes: int = BLOB_BYTES

    def to_bytes(self) -> bytes:
        return self.grey.tobytes() + bytes(BLOB_BYTES - self.grey.nbytes)


@dataclass(frozen=True, eq=False)
class GreyMask:
    logits: Logits
    predicted_iou: Logits
    sam_logits_hr: Logits
    sam_logits_lr: Logits | None
    lr_logits: Logits | None


@dataclass(frozen=True)
class NoAdapters:
    name: str = "numpy"
    sha256: str = "0" * 64
    licence: str = "CC0-1.0"
    uses_lr: bool = True
    prompts: tuple[str, ...] = ()
    knows_tissue: bool = False


class NumpyBackend:
    """`Backend`: a mask is what is dark in the prompt's box, by the mean brightness of HR and LR view together."""

    config = MODELS["lite_medsam"]
    key_prefix = "lite_medsam:000000000000:1"
    adapters = NoAdapters()
    own_adapters = ()
    device, precision, engine, warnings = "cpu", "float32", "numpy", ()
    captures_graphs = False

    def encode(self, images: Sequence[ViewPixels]) -> list[GreyView]:
        time.sleep(ENCODE_S * len(images))
        return [GreyView(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)) for image in images]

    def load(self, blob: bytes) -> GreyView:
        return GreyView(np.frombuffer(blob, np.uint8, GRID * GRID).reshape(GRID, GRID))

    def prepare(self, embedding: GreyView) -> GreyView:
        return embedding

    def decode(self, items: Sequence[DecodeItem[GreyView]]) -> list[GreyMask]:
        time.sleep(DECODE_S * len(items))
        return [self._decode(item) for item in items]

    def adapters_of(self, item: DecodeItem[GreyView]) -> NoAdapters | None:
        return None if item.frozen else self.adapters

    def upscale(self, logits: Logits, view_size: tuple[int, int]) -> Logits:
        return logits

    def _decode(self, item: DecodeItem[GreyView]) -> GreyMask:
        lr = item.hr if item.lr is None else item.lr
        level = (float(item.hr.grey.mean()) + float(lr.grey.mean())) / 2
        logits = np.full((GRID, GRID), -5.0, np.float32)
        x0, y0, x1, y1 = (round(value) for value in item.prompt.box or (0, 0, GRID, GRID))
        part = np.s_[max(y0, 0) : y1, max(x0, 0) : x1]
        logits[part] = level - item.hr.grey[part].astype(np.float32)
        return GreyMask(logits[None], np.array([0.9], np.float32), logits, logits if item.lr_sam else None, None)


def load_numpy(settings: Settings) -> NumpyBackend:
    return NumpyBackend()


if __name__ == "__main__":
    assembly.load_backend = load_numpy  # type: ignore[assignment]
    sys.exit(main())
