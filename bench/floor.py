"""What each stage costs in each engine, beside the peers' way and what this machine could do at best.

    python bench/floor.py [--model vit_b] [--threads 1] [--clock cpu] [--rounds 10] [--json FILE]

Adapters are random, and so are the base's weights where none are at hand: costs do not depend on their values. The
floor of a stage is the time its multiply-adds take at the machine's own rate of a matrix product, or its weights,
inputs and outputs at its rate of copying, whichever is longer; both rates are measured in the same run with the same
clock. On a machine that others use too, `--clock cpu` with one thread tells what an undisturbed run would take; on a
quiet machine `--clock wall` with all threads is what a user waits, and a warm click is timed as well, in process and as
a request to /v1 of a service in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openvino
import skimage.data
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.checkpoints import BaseWeights, load_base_weights, save_adapters
from wsisam_model.config import MODELS, ModelConfig
from wsisam_model.decoder_batch import DecodeRequest, collate
from wsisam_model.errors import CheckpointError
from wsisam_model.image_encoder import build_image_encoder, load_image_encoder
from wsisam_model.image_encoder.vit import segment_anything_modeling
from wsisam_model.mask_decoder import MaskDecoder
from wsisam_model.network import ViewFeatures
from wsisam_model.predictor import Predictor
from wsisam_model.prompt_encoder import PromptEncoder
from wsisam_model.prompt_tensors import branch_prompt
from wsisam_model.prompts import Prompt
from wsisam_model.registry import base_weights_path, load_model
from wsisam_service.assembly import build_executor
from wsisam_service.bench import running_service
from wsisam_service.execution.backend import PredictorBackend
from wsisam_service.jobs import Timings
from wsisam_service.segmenting.prompts import PromptSpec
from wsisam_service.segmenting.segmenter import Segmenter, SegmentRequest
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue
from wsisam_service.slides.write import write_pyramid

BOX = Prompt(box=(60.0, 70.0, 180.0, 200.0))
CLICKED = (970.0, 960.0, 1070.0, 1110.0)
TISSUE_MPP, TISSUE_TILES = 0.5, 4
MATRIX_SIDE = 1024
COPY_BYTES = 64 * 2**20

Action = Callable[[], object]
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


class PeerDecode(nn.Module):
    """segment-anything's own prompt encoder and mask decoder: a box on an image embedding, one mask."""

    def __init__(self, base: BaseWeights, side: int) -> None:
        super().__init__()
        modeling = segment_anything_modeling()
        self.prompt_encoder = modeling.PromptEncoder(256, (64, 64), (side, side), 16)
        transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        self.mask_decoder = modeling.MaskDecoder(transformer_dim=256, transformer=transformer)
        self.prompt_encoder.load_state_dict(dict(base.prompt_encoder))
        self.mask_decoder.load_state_dict(dict(base.mask_decoder))
        self.requires_grad_(False).eval()

    def forward(self, embedding: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        sparse, dense = self.prompt_encoder(points=None, boxes=box, masks=None)
        masks, iou = self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense, False)
        return masks, iou


def base_of(config: ModelConfig, folder: Path) -> Path:
    """The base's weights: those at hand, else seeded random ones in `folder`."""
    try:
        return base_weights_path(config)
    except CheckpointError:
        path = folder / f"{config.name}.pth"
    if not path.exists():
        torch.manual_seed(0)
        parts = {
            "image_encoder": build_image_encoder(config),
            "prompt_encoder": PromptEncoder(config.image_size),
            "mask_decoder": MaskDecoder(),
        }
        torch.save({f"{part}.{key}": value for part in parts for key, value in parts[part].state_dict().items()}, path)
    return path


def random_adapters(config: ModelConfig, base: BaseWeights, folder: Path) -> Path:
    """A file of adapters of seeded random numbers: their masks mean nothing."""
    torch.manual_seed(0)
    state = Adapters(Adapter(config.early_channels), Adapter(config.early_channels)).state_dict()
    path = folder / "adapters.safetensors"
    save_adapters(path, state, model=config.name, base_sha256=base.sha256, data="random numbers", licence="any use")
    return path


def stages(predictor: Predictor, image: np.ndarray[Any, Any]) -> dict[str, Action]:
    """The steps of a click in one engine, on one view as both HR and LR."""
    (embedding,) = predictor.encode([image])
    hr, lr = predictor.prepare(embedding), predictor.prepare(embedding)
    dual, adapted = DecodeRequest(hr, lr, BOX), DecodeRequest(hr, None, BOX)
    frozen = DecodeRequest(hr, None, BOX, frozen=True)
    return {
        "encode a view": lambda: predictor.encode([image]),
        "ready a view": lambda: predictor.decoder.fused(predictor.prepare(embedding), "hr"),
        "dual decode": lambda: predictor.decode([dual]),
        "adapted decode, HR alone": lambda: predictor.decode([adapted]),
        "frozen decode": lambda: predictor.decode([frozen]),
        "8 dual decodes": lambda: predictor.decode([dual] * 8),
    }


def peers(base: BaseWeights, predictor: Predictor, image: np.ndarray[Any, Any], threads: int) -> dict[str, Action]:
    """The ways of others, on the same weights: SAM's decoder as published, and the dual form as written down."""
    (embedding,) = predictor.encode([image])
    peer = PeerDecode(base, predictor.config.image_size)
    inputs = (embedding.embedding[None].contiguous(), torch.tensor([BOX.box]))
    with torch.no_grad():
        network = openvino.convert_model(peer, example_input=inputs, input=[tuple(x.shape) for x in inputs])
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(network, "CPU", hints).create_infer_request()
    for index, tensor in enumerate(inputs):
        request.set_input_tensor(index, openvino.Tensor(tensor.numpy(), shared_memory=True))
    features, size = ViewFeatures(embedding.embedding, embedding.early), image.shape[:2]
    prompts = [branch_prompt([BOX], size, predictor.config, lr=lr, like=features.embedding) for lr in (False, True)]
    trained = predictor.decoder.adapters
    assert trained is not None
    plain = predictor.decoder.network

    def eager(action: Action) -> Action:
        def run() -> object:
            with torch.inference_mode():
                return action()

        return run

    return {
        "peer torch: SAM decode": eager(lambda: peer(*inputs)),
        "peer openvino: SAM decode": request.infer,
        "peer torch: dual form": eager(lambda: plain.dual_decode(trained, features, prompts[0], features, prompts[1])),
    }


@contextmanager
def clicks(predictor: Predictor, folder: Path, flags: list[str]) -> Iterator[dict[str, Action]]:
    """The same warm click in this process and over HTTP, both from what is asked to the outline in the answer."""
    path = folder / "tissue.tif"
    write_pyramid(path, np.tile(skimage.data.immunohistochemistry(), (TISSUE_TILES, TISSUE_TILES, 1)), TISSUE_MPP)
    settings = Settings(slides=(str(path),))
    executor = build_executor(settings, PredictorBackend(predictor, settings.store_format))
    segmenter = Segmenter(executor, settings)
    (listed,) = Catalogue(settings.slides).list().slides
    slide, asked = listed.slide, SegmentRequest([PromptSpec(box=CLICKED)])
    assert slide is not None
    with (
        asyncio.Runner() as loop,
        running_service(path, flags) as url,
        httpx.Client(base_url=url, timeout=300) as client,
    ):
        (known,) = client.get("/v1/slides").raise_for_status().json()["slides"]
        address, body = f"/v1/slides/{known['id']}/segment", {"prompts": [{"box": CLICKED}]}
        yield {
            "openvino: warm click in process": lambda: loop.run(segmenter.segment(slide, asked, Timings())),
            "openvino: warm click over HTTP": lambda: client.post(address, json=body).raise_for_status(),
        }
        loop.run(executor.aclose())


def floors(base: BaseWeights, predictor: Predictor, image: np.ndarray[Any, Any]) -> dict[str, tuple[float, float]]:
    """Multiply-adds times two, and bytes that must be read and written, of each stage."""
    encoder = load_image_encoder(predictor.config, base.image_encoder)
    side, decoder = predictor.config.image_size, predictor.decoder
    (embedding,) = predictor.encode([image])
    hr, lr = predictor.prepare(embedding), predictor.prepare(embedding)
    dual = collate(decoder, [DecodeRequest(hr, lr, BOX)], predictor.config)
    adapted = collate(decoder, [DecodeRequest(hr, None, BOX)], predictor.config)
    frozen = collate(decoder, [DecodeRequest(hr, None, BOX, frozen=True)], predictor.config)
    view, logits = sum(tensor.nbytes for tensor in hr.tensors), 256 * 256 * 4
    weights = _nbytes(decoder.network.mask_decoder)
    ready = view + embedding.embedding.nbytes + embedding.early.nbytes + 32 * logits
    features = embedding.embedding.nbytes + embedding.early.nbytes
    return {
        "encode a view": (_flops(lambda: encoder(torch.zeros(1, 3, side, side))), _nbytes(encoder) + features),
        "ready a view": (_flops(lambda: decoder.fused(predictor.prepare(embedding), "hr")), ready),
        "dual decode": (
            _flops(lambda: decoder(dual.layout, dual.inputs)),
            2 * view + 32 * logits + weights + 2 * logits,
        ),
        "adapted decode, HR alone": (
            _flops(lambda: decoder(adapted.layout, adapted.inputs)),
            view + 32 * logits + weights + 2 * logits,
        ),
        "frozen decode": (_flops(lambda: decoder(frozen.layout, frozen.inputs)), view + weights + logits),
    }


def rates(clock: Callable[[], float]) -> dict[str, float]:
    """What the machine does at best: multiply-adds times two of a matrix product and bytes read and written, per s."""
    a, source = torch.randn(MATRIX_SIDE, MATRIX_SIDE), torch.zeros(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    product, copy = (min(_times(action, 10, clock)) for action in (lambda: a @ a, lambda: target.copy_(source)))
    return {"flop_per_s": 2 * MATRIX_SIDE**3 / product, "bytes_per_s": 2 * COPY_BYTES / copy}


def measure(actions: Mapping[str, Action], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each action, in turn, so that what disturbs the machine disturbs all of them."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            times[name] += _times(action, 1, clock)
    return times


def _times(action: Action, count: int, clock: Callable[[], float]) -> list[float]:
    times = []
    for _ in range(count):
        start = clock()
        action()
        times.append(clock() - start)
    return times


def _flops(action: Action) -> float:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        action()
    return float(counter.get_total_flops())


def _nbytes(module: nn.Module) -> float:
    return float(sum(parameter.nbytes for parameter in module.parameters()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="lite_medsam")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="for random weights and their converted networks, to be used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary))


def run(options: argparse.Namespace, folder: Path) -> None:
    config, clock = MODELS[options.model], CLOCKS[options.clock]
    weights = base_of(config, folder)
    base = load_base_weights(weights, config)
    model = {"weights": weights, "adapters": random_adapters(config, base, folder), "threads": options.threads}
    model |= {"engine_cache": folder, "device": "cpu"}
    image = np.random.default_rng(0).integers(0, 256, (config.image_size, config.image_size, 3), dtype=np.uint8)
    predictors = {engine: load_model(config.name, engine=engine, **model) for engine in ("torch", "openvino")}
    assert [predictor.engine for predictor in predictors.values()] == list(predictors)
    actions = {f"{e}: {stage}": action for e, p in predictors.items() for stage, action in stages(p, image).items()}
    actions |= peers(base, predictors["torch"], image, options.threads)
    best = rates(clock)
    load = os.getloadavg()
    if options.clock == "wall":
        flags = [text for name, value in model.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        flags += ["--model", config.name, "--engine", "openvino"]
        with clicks(predictors["openvino"], folder, flags) as clicked:
            times = measure(actions | clicked, options.rounds, clock)
    else:
        times = measure(actions, options.rounds, clock)
    work = floors(base, predictors["torch"], image)
    floor = {
        stage: max(flop / best["flop_per_s"], nbytes / best["bytes_per_s"]) for stage, (flop, nbytes) in work.items()
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {
        "commit": commit,
        "model": config.name,
        "device": f"cpu, {options.threads} thread(s), {platform.machine()}",
        "clock": options.clock,
        "engines": {"torch": torch.__version__, "openvino": openvino.__version__},
        "load": load,
        "rates": best,
        "work": {stage: {"flop": flop, "bytes": nbytes} for stage, (flop, nbytes) in work.items()},
    }
    print(f"{best['flop_per_s'] / 1e9:.0f} GFLOP/s, {best['bytes_per_s'] / 1e9:.1f} GB/s, load {load[0]:.1f}")
    print(f"{f'{options.clock} ms':<32}{'min':>9}{'median':>9}{'floor':>9}{'floor/min':>11}")
    for name, seconds in times.items():
        least = floor.get(name.partition(": ")[2])
        shown = f"{least * 1e3:9.1f}{least / min(seconds):11.2f}" if least else ""
        print(f"{name:<32}{min(seconds) * 1e3:9.1f}{statistics.median(seconds) * 1e3:9.1f}{shown}")
    if options.json:
        rows = {name: {"s": seconds} for name, seconds in times.items()}
        options.json.write_text(json.dumps({"about": about, "stages": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
