"""View pixels to model input, prompts to the model frame, logits back to view pixels (METHOD.md sections 1.3 and 3).

Torch-free; one code for training and serving. Sizes are (height, width). Coordinates are (x, y) pixel indices: the
centre of pixel i is at i. The model frame is the S×S square that holds the resized view at its upper left corner.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from wsisam_model.config import ModelConfig
from wsisam_model.prompts import MASK_SIDE

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_IMAGENET_MEAN = np.array([123.675, 116.28, 103.53])
_IMAGENET_STD = np.array([58.395, 57.12, 57.375])


def resized_size(view_size: tuple[int, int], config: ModelConfig) -> tuple[int, int]:
    """(height, width) of the view in the model frame: longest side S, rounded half up."""
    scale = config.image_size / max(view_size)
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in view_size)
    return height, width


def resize_to_model(image: Pixels, config: ModelConfig) -> Pixels:
    """The view (H, W, 3) resized to the model frame, without padding, uint8 RGB.

    Each base gets the resampling it was trained with: area averaging or antialiased bilinear.
    """
    height, width = resized_size(image.shape[:2], config)
    if image.shape[:2] == (height, width):
        return image
    if config.normalisation == "minmax":
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def write_input(image: Pixels, config: ModelConfig, model_input: Floats) -> None:
    """Write the encoder's input of a view in uint8 RGB (H, W, 3) over `model_input`, float32 (3, S, S): resized,
    normalised, then padded.

    The padding of zeros lies below or on the right. A view of one colour becomes all zeros under min-max. ValueError
    for what is no such view.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"a view is uint8 (H, W, 3), not {image.dtype} {image.shape}")
    resized = resize_to_model(image, config)
    height, width = resized.shape[:2]
    for levels, table, channel in zip(
        cv2.split(resized), _normalisation_tables(resized, config), model_input, strict=True
    ):
        channel[:height, :width] = cv2.LUT(levels, table)
        channel[height:] = 0
        channel[:, width:] = 0


def _normalisation_tables(resized: Pixels, config: ModelConfig) -> Floats:
    """Normalised value of each grey level, one row a channel, float32 (3, 256)."""
    levels = np.arange(256.0)
    if config.normalisation == "minmax":
        low, high = float(resized.min()), float(resized.max())
        table = (levels - low) / max(high - low, 1e-8)
        return np.stack((table.astype(np.float32),) * 3)
    tables: Floats = ((levels - _IMAGENET_MEAN[:, None]) / _IMAGENET_STD[:, None]).astype(np.float32)
    return tables


def lr_from_hr(xy: npt.ArrayLike, view_size: tuple[int, int]) -> Floats:
    """HR view pixels (..., 2) to pixels of the concentric LR view of the same size, whose field is twice as wide.

    The floor is the authors' (METHOD.md 1.3); it is up to a quarter of a pixel off the exact place, and parity needs
    it: leaving it out moves the logits by up to 0.6.
    """
    height, width = view_size
    offset = np.array([width, height], np.float32) / 4
    mapped: Floats = (np.floor(np.asarray(xy, np.float32) / 2) + offset).astype(np.float32)
    return mapped


def to_model_frame(xy: npt.ArrayLike, view_size: tuple[int, int], config: ModelConfig) -> Floats:
    """View pixels (..., 2) to the model frame, float32, not rounded or clipped; the prompt encoder adds its 0.5."""
    height, width = resized_size(view_size, config)
    scale = np.array([width / view_size[1], height / view_size[0]])
    scaled: Floats = (np.asarray(xy, np.float32) * scale).astype(np.float32)
    return scaled


def upscale_logits(logits: Floats, config: ModelConfig, view_size: tuple[int, int]) -> Floats:
    """Low-resolution logits (n, 256, 256) to logits in view pixels, float32 (n, height, width); a mask is `> 0`.

    Two bilinear steps with the cropping of the padding between them, since they do not merge into one exactly. Where
    a step would change nothing it is left out, and the array given may be returned itself.
    """
    side = config.image_size
    height, width = resized_size(view_size, config)
    if side != MASK_SIDE:
        logits = _resize_bilinear(logits, (side, side))
    return _resize_bilinear(logits[:, :height, :width], view_size)


def _resize_bilinear(maps: Floats, size: tuple[int, int]) -> Floats:
    """Each map (n, h, w) resized without antialiasing, pixel centres kept in place (align_corners=False)."""
    if maps.shape[1:] == size:
        return maps
    resized = np.empty((len(maps), *size), np.float32)
    for source, target in zip(maps, resized, strict=True):
        target[...] = cv2.resize(np.ascontiguousarray(source), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized
