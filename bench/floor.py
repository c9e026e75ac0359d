"""What each stage costs in each engine, beside the peers' way and what this machine could do at best.

    python bench/floor.py [--model vit_b] [--threads 1] [--clock cpu] [--rounds 10] [--json FILE]

Adapters are random, and so are the base's weights where none are at hand: costs do not depend on their values. The
floor of a stage is the time its multiply-adds take at the machine's own rate of a matrix product, or its weights,
inputs and outputs at its rate of copying, whichever is longer; the rates are measured in the same run with the same
clock. Where the CPU has bfloat16, OpenVINO's rows in it and its rate of products are there too. On a machine that
others use as well, `--clock cpu` with one thread tells what an undisturbed run would take; on a quiet machine `--clock
wall` with all threads is what a user waits, and a warm click is timed as well, in process and as a request to /v1 of a
service in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import wsisam_model  # noqa: F401 # before torch, as in the service: it says how long torch's threads spin

# isort: split

import numpy as np
import openvino
import torch
from stages import BOX, Action, PeerDecode, base_of, random_adapters, work_of
from warm_clicks import clicks

from wsisam_model.checkpoints import BaseWeights, load_base_weights
from wsisam_model.config import MODELS
from wsisam_model.decoder_batch import DecodeRequest
from wsisam_model.engines.openvino_engine import computes_in
from wsisam_model.engines.precision import DTYPES
from wsisam_model.network import ViewFeatures
from wsisam_model.predictor import Predictor
from wsisam_model.prompt_tensors import branch_prompt
from wsisam_model.registry import load_model

MATRIX_SIDE = 1024
COPY_BYTES = 64 * 2**20

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def stages(predictor: Predictor, image: np.ndarray[Any, Any]) -> dict[str, Action]:
    """The steps of a click in one engine, on one view as both HR and LR."""
    (embedding,) = predictor.encode([image])
    hr, lr = predictor.prepare(embedding), predictor.prepare(embedding)
    dual, adapted = DecodeRequest(hr, lr, BOX), DecodeRequest(hr, None, BOX)
    frozen = DecodeRequest(hr, None, BOX, frozen=True)
    return {
        "encode a view": lambda: predictor.encode([image]),
        "ready a view": lambda: predictor._engine.fuse(predictor.prepare(embedding), "hr"),
        "dual decode": lambda: predictor.decode([dual]),
        "adapted decode, HR alone": lambda: predictor.decode([adapted]),
        "frozen decode": lambda: predictor.decode([frozen]),
        "8 dual decodes": lambda: predictor.decode([dual] * 8),
    }


def engines() -> dict[str, dict[str, str]]:
    """What is compared, as `load_model`'s options."""
    compared = {name: {"engine": name, "precision": "float32"} for name in ("torch", "openvino")}
    if computes_in(torch.bfloat16):
        compared["openvino bfloat16"] = {"engine": "openvino", "precision": "bfloat16"}
    return compared


def peers(base: BaseWeights, predictor: Predictor, image: np.ndarray[Any, Any], threads: int) -> dict[str, Action]:
    """The ways of others, on the same weights: SAM's decoder as published, and the dual form as written down."""
    (embedding,) = predictor.encode([image])
    peer = PeerDecode(base, predictor.config.image_size)
    inputs = (embedding.embedding[None].contiguous(), torch.tensor([BOX.box]))
    with torch.no_grad():
        network = openvino.convert_model(peer, example_input=inputs, input=[tuple(x.shape) for x in inputs])

    def compiled(hint: str) -> Action:
        hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        request = openvino.Core().compile_model(network, "CPU", hints).create_infer_request()
        for index, tensor in enumerate(inputs):
            request.set_input_tensor(index, openvino.Tensor(tensor.numpy(), shared_memory=True))
        return cast(Action, request.infer)

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
        **{
            f"peer {name}: SAM decode": compiled("bf16" if made["precision"] == "bfloat16" else "f32")
            for name, made in engines().items()
            if made["engine"] == "openvino"
        },
        "peer torch: dual form": eager(lambda: plain.dual_decode(trained, features, prompts[0], features, prompts[1])),
    }


def rates(clock: Callable[[], float]) -> dict[str, float]:
    """What the machine does at best, per s: multiply-adds times two of a matrix product, by format, and bytes read and
    written.
    """
    a, source = torch.randn(MATRIX_SIDE, MATRIX_SIDE), torch.zeros(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = {"bytes": 2 * COPY_BYTES / min(_times(lambda: target.copy_(source), 10, clock))}
    for precision in {made["precision"] for made in engines().values()}:
        factor = a.to(DTYPES[precision])
        best[precision] = 2 * MATRIX_SIDE**3 / min(_times(lambda factor=factor: factor @ factor, 10, clock))
    return best


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
    compared = engines()
    fastest = list(compared)[-1]
    image = np.random.default_rng(0).integers(0, 256, (config.image_size, config.image_size, 3), dtype=np.uint8)
    predictors = {name: load_model(config.name, **made, **model) for name, made in compared.items()}
    assert [predictor.engine for predictor in predictors.values()] == [made["engine"] for made in compared.values()]
    actions = {f"{e}: {stage}": action for e, p in predictors.items() for stage, action in stages(p, image).items()}
    actions |= peers(base, predictors["torch"], image, options.threads)
    best = rates(clock)
    load = os.getloadavg()
    if options.clock == "wall":
        flags = [text for name, value in model.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        flags += ["--model", config.name, "--engine", "openvino", "--precision", compared[fastest]["precision"]]
        with clicks(predictors[fastest], folder, flags) as clicked:
            actions |= {
                f"{fastest}: warm click in process": clicked.in_process,
                f"{fastest}: warm click over HTTP": clicked.over_http,
            }
            times = measure(actions, options.rounds, clock)
    else:
        times = measure(actions, options.rounds, clock)
    work = work_of(predictors["torch"], image)
    floor = {
        f"{name}: {stage}": one.floor_s(best[made["precision"]], best["bytes"])
        for name, made in compared.items()
        for stage, one in work.items()
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
        "work": {stage: {"flop": one.flop, "bytes": one.weights + one.moved} for stage, one in work.items()},
    }
    print(*(f"{name} {rate / 1e9:.0f} G/s," for name, rate in sorted(best.items())), f"load {load[0]:.1f}")
    print(f"{f'{options.clock} ms':<42}{'min':>9}{'median':>9}{'floor':>9}{'floor/min':>11}")
    for name, seconds in times.items():
        least = floor.get(name)
        shown = f"{least * 1e3:9.1f}{least / min(seconds):11.2f}" if least else ""
        print(f"{name:<42}{min(seconds) * 1e3:9.1f}{statistics.median(seconds) * 1e3:9.1f}{shown}")
    if options.json:
        rows = {name: {"s": seconds} for name, seconds in times.items()}
        options.json.write_text(json.dumps({"about": about, "stages": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
