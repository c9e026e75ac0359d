"""Which engine a predictor gets, and which number formats."""

from __future__ import annotations

from pathlib import Path

import torch

from wsisam_model.config import ModelConfig
from wsisam_model.engines import Engine
from wsisam_model.engines.precision import Precision
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.errors import ModelError
from wsisam_model.fast_decoder import FastDecoder
from wsisam_model.image_encoder import ImageEncoder

ENGINES = ("auto", "torch", "openvino")


def choose_precision(name: str, engine: str, device: torch.device, config: ModelConfig) -> Precision:
    """The precision called `name` (`Precision.of`), or for "auto" the fastest that passed the gate
    (docs/PERFORMANCE.md): float16 on CUDA, bfloat16 in OpenVINO where CPU and model allow it, else float32.

    Below float32 the encoder's format is part of the view keys, so stores are filled anew, and machines of different
    formats share none. Raises `ModelError`.
    """
    if name != "auto":
        return Precision.of(name)
    if device.type == "cuda":
        return Precision.of("float16")
    wanted = engine != "torch" and config.passes_in_bfloat16
    return Precision.of("bfloat16" if wanted and _openvino_computes_in_bfloat16() else "float32")


def choose_engine(
    name: str,
    encoder: ImageEncoder,
    decoder: FastDecoder,
    *,
    device: torch.device,
    precision: Precision,
    side: int,
    folder: Path | None = None,
    threads: int | None = None,
) -> tuple[Engine, list[str]]:
    """The engine called `name`, and warnings for the operator. The last four are `OpenVinoEngine`'s.

    "auto" is OpenVINO on CPU and torch otherwise, with captured graphs on CUDA. An engine that cannot be had is
    replaced by torch with a warning, also where it was named: a slow answer is better than none. Raises `ModelError`
    for a name that is none.
    """
    if name not in ENGINES:
        raise ModelError(f"no engine is called {name!r}; there are {', '.join(ENGINES)}")
    warnings = []
    if device.type == "cuda" and name == "auto":
        from wsisam_model.engines.cuda_engine import CudaEngine

        return CudaEngine(TorchEngine(encoder, decoder, device, precision)), []
    if device.type != "cpu" and name == "openvino":
        warnings = ["openvino computes on CPU only; torch is used"]
    elif name != "torch":
        try:
            from wsisam_model.engines.openvino_engine import OpenVinoEngine

            engine = OpenVinoEngine(encoder, decoder, precision, side, folder=folder, threads=threads)
        except ImportError:
            warnings = ["the package openvino is not installed; torch is used, several times slower on CPU"]
        except Exception as error:  # what a conversion raises is not documented, and torch can always take over
            warnings = [f"openvino could not be used, torch is several times slower on CPU: {error}"]
        else:
            return engine, engine.warnings
    return TorchEngine(encoder, decoder, device, precision), warnings


def engine_beside(engine: Engine, decoder: FastDecoder) -> tuple[Engine, list[str]]:
    """`engine` for a further decoder, or torch where that cannot be had, and warnings for the operator."""
    try:
        return engine.beside(decoder), []
    except Exception as error:  # as above
        warning = f"{engine.name} could not be used for further adapters; torch is used: {error}"
        return engine.plain.beside(decoder), [warning]


def _openvino_computes_in_bfloat16() -> bool:
    try:
        from wsisam_model.engines.openvino_engine import computes_in

        return computes_in(torch.bfloat16)
    except (ImportError, RuntimeError):  # `choose_engine` meets it again and tells the operator
        return False
