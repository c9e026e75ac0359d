"""Converted networks on disk, so that only the first start on a machine pays for their conversion."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import openvino
import torch
from torch import Tensor

FORMAT = 8
"""Raised with every change of the graphs that are converted."""
UNUSED_DAYS = 90
"""Files that nobody read for so long go when a new network is kept: those of earlier weights and versions."""

_OURS = re.compile(r"[a-z]+-[0-9a-f]{16,24}\.(xml|bin)")


def default_folder() -> Path:
    """`wsisam/engines` in the user's cache folder (`XDG_CACHE_HOME`, by default `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsisam" / "engines"


def name_of(
    part: str,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Sequence[tuple[int, ...]],
    exact: Sequence[str] = (),
) -> str:
    """A file name that changes with the weights, with the inputs' `shapes`, with what is `exact` (`read_or_convert`),
    with the graph's version and with those of OpenVINO and torch.
    """
    versions = str(FORMAT), openvino.__version__, torch.__version__, *map(str, shapes), *exact
    digest = hashlib.sha256(" ".join(versions).encode())
    for key, tensor in tensors:
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return f"{part}-{digest.hexdigest()[:24]}"


def read_or_convert(
    folder: Path, name: str, convert: Callable[[], openvino.Model], exact: Sequence[str] = ()
) -> tuple[openvino.Model, str | None]:
    """The network `name` from `folder`, or made by `convert` and kept there; and a warning where it cannot be kept.

    The modules `exact` are computed in float32 whatever the precision. A damaged file is replaced. Several processes
    may do this at once: a file is complete when it has its name.
    """
    path = folder / f"{name}.xml"
    if path.is_file():
        try:
            model = openvino.Core().read_model(path)
        except RuntimeError:
            pass  # damaged: made anew below
        else:
            _mark_used(path)
            return model, None
    model = _as_read(convert(), exact)
    try:
        _keep(model, path)
        _drop_unused(folder)
    except (OSError, RuntimeError) as error:
        return model, f"a converted network could not be kept in {folder}, so every start converts it: {error}"
    return model, None


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that came with an image, which only its owner may write
        os.utime(path)
        os.utime(path.with_suffix(".bin"))


def _drop_unused(folder: Path) -> None:
    """Also the drafts of processes that were killed; but no file of another kind, whatever folder this is."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for file in filter(lambda file: _OURS.fullmatch(file.name), folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if file.stat().st_mtime < oldest:
                file.unlink()


def _keep(model: openvino.Model, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"draft-{secrets.token_hex(8)}.xml")
    weights = draft.with_suffix(".bin")
    try:
        openvino.save_model(model, draft, compress_to_fp16=False)
        weights.replace(path.with_suffix(".bin"))
        draft.replace(path)  # last, since its being there says that both are
    finally:
        draft.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)


def _as_read(model: openvino.Model, exact: Sequence[str]) -> openvino.Model:
    """The model as it is read from a file, with its modules `exact` marked; layers are named after the modules.

    OpenVINO's Python interface has no such mark. And in lower precision it computes otherwise what it has not read from
    a file, so that the first start of a machine would give other masks than those that follow.
    """
    names = tuple(f"__module.{module}" for module in exact)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "converted.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        if names:
            _mark(path, names)
        return openvino.Core().read_model(path)


def _mark(path: Path, names: tuple[str, ...]) -> None:
    """Mark the layers of a model's file whose names begin like one of `names`."""
    tree = ElementTree.parse(path)  # noqa: S314 # OpenVINO has just written it
    for layer in tree.iter("layer"):
        if layer.get("name", "").startswith(names):
            marks = layer.find("rt_info")
            if marks is None:
                marks = ElementTree.SubElement(layer, "rt_info")
            ElementTree.SubElement(marks, "attribute", {"name": "precise", "version": "0"})
    tree.write(path)
