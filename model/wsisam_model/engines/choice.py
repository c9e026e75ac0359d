"""Which engine a predictor gets."""

from __future__ import annotations

from pathlib import Path

from wsisam_model.engines import Engine
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.errors import ModelError
from wsisam_model.fast_decoder import FastDecoder

ENGINES = ("auto", "torch", "openvino")


def choose_engine(
    name: str, plain: TorchEngine, side: int, *, folder: Path | None = None, threads: int | None = None
) -> tuple[Engine, list[str]]:
    """The engine called `name` around `plain`, and warnings for the operator; the arguments are `OpenVinoEngine`'s.

    "auto" is OpenVINO on CPU and torch otherwise, with captured graphs on CUDA. An engine that cannot be had is
    replaced by torch with a warning, also where it was named: a slow answer is better than none. Raises `ModelError`
    for a name that is none.
    """
    if name not in ENGINES:
        raise ModelError(f"no engine is called {name!r}; there are {', '.join(ENGINES)}")
    if plain.device.type == "cuda" and name == "auto":
        from wsisam_model.engines.cuda_engine import CudaEngine

        return CudaEngine(plain), []
    if name == "torch":
        return plain, []
    if plain.device.type != "cpu":
        return plain, ["openvino computes on CPU only; torch is used"]
    try:
        from wsisam_model.engines.openvino_engine import OpenVinoEngine

        engine = OpenVinoEngine(plain, side, folder=folder, threads=threads)
    except ImportError:
        return plain, ["the package openvino is not installed; torch is used, several times slower on CPU"]
    except Exception as error:  # what a conversion raises is not documented, and torch can always take over
        return plain, [f"openvino could not be used, torch is several times slower on CPU: {error}"]
    return engine, engine.warnings


def engine_beside(engine: Engine, plain: TorchEngine, decoder: FastDecoder) -> tuple[Engine, list[str]]:
    """`engine` for a further decoder, or torch where that cannot be had, and warnings for the operator."""
    try:
        return engine.beside(decoder), []
    except Exception as error:  # as above
        return plain.beside(decoder), [f"{engine.name} could not be used for further adapters; torch is used: {error}"]
