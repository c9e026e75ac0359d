"""Any RGB image as a pyramidal TIFF slide: for the demo, for tests, and for pictures too large to be served as such."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

TILE_SIDE = 256
SMALLEST_SIDE = 256
"""No level is made of one that is not larger than this."""


def write_pyramid(path: Path, image: npt.NDArray[np.uint8], mpp: float | None, levels: int | None = None) -> None:
    """Write `image`, uint8 (height, width, 3) RGB, as OME-TIFF with levels halved by area, lossless.

    `mpp` in µm per pixel, None for a slide that does not say; `levels` None for as many as make sense.
    """
    pyramid = [image]
    while len(pyramid) < levels if levels is not None else max(pyramid[-1].shape[:2]) > SMALLEST_SIDE:
        height, width = (side // 2 for side in pyramid[-1].shape[:2])
        pyramid.append(np.asarray(cv2.resize(pyramid[-1], (width, height), interpolation=cv2.INTER_AREA), np.uint8))
    sizes = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    units = {} if mpp is None else {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    per_cm = None if mpp is None else (1e4 / mpp, 1e4 / mpp)  # some software reads the tags, some the OME-XML
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for number, level in enumerate(pyramid):
            tiff.write(
                level,
                subifds=len(pyramid) - 1 if number == 0 else None,
                subfiletype=0 if number == 0 else 1,
                tile=(TILE_SIDE, TILE_SIDE),
                photometric="rgb",
                compression="zlib",
                resolution=per_cm if number == 0 else None,
                resolutionunit="CENTIMETER" if per_cm and number == 0 else None,
                metadata={"axes": "YXS", **sizes, **units} if number == 0 else None,
            )
