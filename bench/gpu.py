"""What a GPU makes of each stage: views and prompts per second in captured graphs and eagerly, beside the peers' way,
what the device could do at best, and clicks against a real service.

    python bench/gpu.py [--model vit_b] [--adapters default] [--precision float32 bfloat16 float16] [--json FILE]

Adapters are random unless named, and so are the base's weights where none are at hand: what the network costs does not
depend on their values. "whole" rows are the predictor's calls, from uint8 pixels to embeddings on the device and from
prompts to masks on the host; "engine" rows are the network alone, by the device's own clock. The floor is the time that
the multiply-adds take at the device's rate of a matrix product in that precision, or the bytes at its rate of copying,
both measured here.
`--device cpu --small` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stages import BOX, Action, PeerDecode, Work, base_of, random_adapters, work_of

from wsisam_model.checkpoints import BaseWeights, load_base_weights
from wsisam_model.config import MODELS
from wsisam_model.decoder_batch import DecodeRequest, collate
from wsisam_model.engines.precision import DTYPES
from wsisam_model.network import ViewFeatures
from wsisam_model.predictor import Decoded, Predictor
from wsisam_model.prompt_tensors import branch_prompt
from wsisam_model.prompts import Prompt
from wsisam_model.quality import fused_iou
from wsisam_model.registry import load_model

KINDS = {"dual": "dual decode", "HR alone": "adapted decode, HR alone", "frozen": "frozen decode"}
MATRIX_SIDE = {torch.float32: 4096, torch.bfloat16: 8192, torch.float16: 8192}
COPY_BYTES = 2**30
CLIENTS, CLICKS = 16, 20


class Report:
    """Rows printed as they come and written after each, so that a run cut off tells what it had."""

    def __init__(self, options: argparse.Namespace, about: dict[str, Any]) -> None:
        self.start = time.perf_counter()
        self.seconds, self.path = options.seconds, options.json
        self.of_row_s, self.rounds = options.row_seconds, options.rounds
        self.about = about
        self.rows: list[dict[str, Any]] = []

    @property
    def out_of_time(self) -> bool:
        return time.perf_counter() - self.start > self.seconds

    def add(self, name: str, **figures: Any) -> None:
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
        self.rows.append({"name": name, **rounded})
        shown = "  ".join(f"{key} {value}" for key, value in rounded.items())
        print(f"{time.perf_counter() - self.start:6.1f} s  {name:<58} {shown}", flush=True)
        if self.path:
            self.path.write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n")

    def clicks(self, name: str, milliseconds: Sequence[float], **more: Any) -> None:
        p50, p95, p99 = (float(np.quantile(milliseconds, q)) for q in (0.5, 0.95, 0.99))
        self.add(name, p50_ms=p50, p95_ms=p95, p99_ms=p99, count=len(milliseconds), **more)

    def throughput(self, name: str, items: int, seconds: float, floor_s: float | None = None, **more: Any) -> None:
        """`seconds` of a call that does `items`, and the least that it could take."""
        floor = {} if floor_s is None else {"floor_ms": floor_s * 1e3, "achieved": floor_s / seconds}
        self.add(name, per_s=items / seconds, ms=seconds * 1e3, **floor, **more)


def wall_s(action: Action, report: Report, device: torch.device, rounds: int | None = None) -> float:
    """Median seconds of a call, its work on the device included."""
    action()
    times: list[float] = []
    until = time.perf_counter() + report.of_row_s
    while len(times) < (rounds or report.rounds) and (not times or time.perf_counter() < until):
        synchronize(device)
        start = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def device_s(action: Action, report: Report, device: torch.device) -> float:
    """Mean seconds of calls one after the other by the device's clock: the host's as well where it is the slower."""
    if device.type != "cuda":
        return wall_s(action, report, device)
    rounds = max(2, min(report.rounds, int(report.of_row_s / wall_s(action, report, device, rounds=2))))
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(rounds):
        action()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / rounds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(report: Report, device: torch.device, small: bool) -> dict[torch.dtype, tuple[float, float]]:
    """The device's multiply-adds times two per second in each format, and bytes read and written per second."""
    source = torch.zeros(2**20 if small else COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * len(source) / device_s(lambda: target.copy_(source), report, device)
    found = {}
    for dtype, full_side in MATRIX_SIDE.items():
        side = 256 if small else full_side
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = device_s(lambda a=a: a @ a, report, device)
        found[dtype] = 2 * side**3 / seconds, copied
        name = str(dtype).removeprefix("torch.")
        report.add(f"device, {name}", tflop_per_s=found[dtype][0] / 1e12, gb_per_s=copied / 1e9)
    return found


def images_of(count: int, side: int) -> list[np.ndarray[Any, Any]]:
    """Pictures that differ, with structure at several scales."""
    rng = np.random.default_rng(0)
    coarse = [np.kron(rng.integers(0, 256, (side // k, side // k, 3)), np.ones((k, k, 1))) for k in (8, 32, 64)]
    return [
        np.roll(sum(coarse) / 3 + rng.normal(0, 9, (side, side, 3)), 37 * shift, 1).clip(0, 255).astype(np.uint8)
        for shift in range(count)
    ]


class Bench:
    """One model in one precision on the device: graphs, and the same eagerly."""

    def __init__(self, report: Report, options: argparse.Namespace, precision: str, model: dict[str, Any]) -> None:
        self.report, self.precision, self.model = report, precision, model
        engines = {"graphs": "auto", "eager": "torch"} if options.device != "cpu" else {"eager": "torch"}
        start = time.perf_counter()
        self.predictors: dict[str, Predictor] = {
            name: load_model(options.model, engine=engine, precision=precision, **model)
            for name, engine in engines.items()
        }
        loaded = (time.perf_counter() - start) / len(engines)
        self.best = next(iter(self.predictors.values()))
        self.device = torch.device(self.best.device)
        self.small = options.small
        self.is_vit = self.best.config.encoder == "vit"
        side = self.best.config.image_size
        self.images = images_of(4 if self.small else 32, side)
        first = milliseconds(lambda: (self.best.encode(self.images[:1]), synchronize(self.device)))
        again = milliseconds(lambda: (self.best.encode(self.images[:1]), synchronize(self.device)))
        report.add(f"{precision} first encode, capture included", load_s=loaded, ms=first, second_ms=again)
        embeddings = self.best.encode(self.images[:16])
        count = 6 if self.small else options.views
        self.views = [self.best.prepare(one) for one, _ in zip(itertools.cycle(embeddings), range(count), strict=False)]
        with torch.inference_mode():
            for view in self.views:
                view.fused["hr"] = self.best.decoder.fuse(view, "hr")
        rng = np.random.default_rng(1)
        corners, sizes = rng.uniform(0.1, 0.4, (count, 2)) * side, rng.uniform(0.25, 0.5, (count, 2)) * side
        self.prompts = [Prompt(box=(*low, *(low + size))) for low, size in zip(corners, sizes, strict=True)]

    def requests(self, kind: str) -> list[DecodeRequest]:
        """A box on each of many views; the next view serves as the wide one."""
        lr = [*self.views[1:], self.views[0]] if kind == "dual" else [None] * len(self.views)
        return [
            DecodeRequest(hr, wide, prompt, frozen=kind == "frozen")
            for hr, wide, prompt in zip(self.views, lr, self.prompts, strict=True)
        ]

    def encodes(self, work: Work, rate: tuple[float, float]) -> None:
        sizes = (1, 2) if self.small else (1, 8, 32)
        most = 4 if self.is_vit else len(self.images)
        for name, predictor in self.predictors.items():
            for size in sizes:
                images = self.images[:size]
                seconds = wall_s(lambda p=predictor, i=images: p.encode(i), self.report, self.device)
                floor = work.floor_s(*rate, items=size)
                self.report.throughput(f"{self.precision} encode {size}, {name}, whole", size, seconds, floor)
            for size in (1, most) if self.is_vit or self.small else (1, 8, most):
                inputs = torch.rand(size, 3, *self.images[0].shape[:2], pin_memory=self.device.type == "cuda")
                engine = predictor._engine
                seconds = device_s(lambda e=engine, x=inputs: e.encode(x), self.report, self.device)
                floor = work.floor_s(*rate, items=size)
                self.report.throughput(f"{self.precision} encode {size}, {name}, engine", size, seconds, floor)
        many = self.images * (1 if self.small else 4)
        seconds = wall_s(lambda: self.best.encode(many), self.report, self.device)
        self.report.throughput(f"{self.precision} encode {len(many)} in one call", len(many), seconds)

    def decodes(self, work: dict[str, Work], rate: tuple[float, float]) -> None:
        for kind, stage in KINDS.items():
            requests = self.requests(kind)
            for name, predictor in self.predictors.items():
                for size in (1, 2) if self.small else [size for size in (1, 8, 64) if size <= len(requests)]:
                    floor = work[stage].floor_s(*rate, items=size)
                    turn = itertools.cycle([requests[at : at + size] for at in range(0, len(requests), size)])
                    label = f"{self.precision} decode {kind} {size}, {name}"
                    seconds = wall_s(lambda p=predictor, t=turn: p.decode(next(t)), self.report, self.device)
                    self.report.throughput(f"{label}, whole", size, seconds, floor)
                    with torch.inference_mode():
                        batch = collate(predictor.decoder, requests[:size], predictor.config)
                    engine = predictor._engine
                    seconds = device_s(lambda e=engine, b=batch: e.run(b), self.report, self.device)
                    self.report.throughput(f"{label}, engine", size, seconds, floor)
            seconds = wall_s(lambda r=requests: self.best.decode(r), self.report, self.device)
            self.report.throughput(
                f"{self.precision} decode {kind} {len(requests)} in one call", len(requests), seconds
            )

    def host(self) -> None:
        """Parts of a batch of decodes that the host does."""
        requests = self.requests("dual")[:64]

        def gather() -> object:
            with torch.inference_mode():
                return collate(self.best.decoder, requests, self.best.config)

        self.report.throughput("collate 64", len(requests), wall_s(gather, self.report, self.device))
        (embedding,) = self.best.encode(self.images[:1])

        def ready() -> object:
            view = self.best.prepare(embedding)
            with torch.inference_mode():
                return self.best.decoder.fuse(view, "hr")

        self.report.throughput("ready a view", 1, wall_s(ready, self.report, self.device))
        (answer,) = self.best.decode(requests[:1])
        calibration = {"weight": np.ones((3, 9), np.float32), "bias": np.ones(3, np.float32)}
        judge = wall_s(lambda: fused_iou(answer.logits, BOX, calibration), self.report, self.device)
        self.report.throughput("predicted IoU of a mask, one thread", 1, judge)


def peers(report: Report, bench: Bench, base: BaseWeights) -> None:
    """The ways of others in eager float32 on the same weights: SAM's decoder as published, the dual form as written."""
    device = bench.device
    predictor = load_model(bench.best.config.name, engine="torch", precision="float32", **bench.model)
    image = bench.images[0]
    (embedding,) = predictor.encode([image])
    peer = PeerDecode(base, predictor.config.image_size).to(device)
    E = embedding.embedding[None].contiguous()
    features, size = ViewFeatures(embedding.embedding, embedding.early), image.shape[:2]
    trained = predictor.decoder.adapters
    assert trained is not None
    prompts = [branch_prompt([BOX], size, predictor.config, lr=lr, like=E) for lr in (False, True)]
    dual = predictor.decoder.network.dual_decode
    with torch.inference_mode():
        for count in (1, 2) if bench.small else (1, 64):
            boxes = torch.tensor([BOX.box] * count, device=device)
            seconds = device_s(lambda b=boxes: peer(E, b), report, device)
            report.throughput(f"peer: SAM decode {count} on one view, eager float32", count, seconds)
        seconds = device_s(lambda: dual(trained, features, prompts[0], features, prompts[1]), report, device)
        report.throughput("peer: plain dual form 1, eager float32", 1, seconds)


def correctness(report: Report, bench: Bench, reference: Predictor) -> None:
    """Each engine's masks, from pixels on, against eager float32 on the CPU."""
    count = 2 if bench.small or bench.is_vit else 4
    images, boxes = bench.images[:count], bench.prompts[:count]
    expected = decoded(reference, images, boxes)
    answers = {name: decoded(predictor, images, boxes) for name, predictor in bench.predictors.items()}
    pairs = [(name, found, "CPU float32", expected) for name, found in answers.items()]
    if len(answers) > 1:
        pairs.append(("graphs", answers["graphs"], "eager", answers["eager"]))
    for name, found, other, against in pairs:
        error = max(float(abs(a.logits - b.logits).max()) for a, b in zip(found, against, strict=True))
        ious = [mask_iou(a.logits > 0, b.logits > 0) for a, b in zip(found, against, strict=True)]
        figures = {"logits_off_by": error, "mask_iou_mean": statistics.mean(ious), "mask_iou_min": min(ious)}
        report.add(f"{bench.precision} {name} against {other}", **figures)
    report.add("largest logit", value=max(float(abs(one.logits).max()) for one in expected))


def decoded(predictor: Predictor, images: Sequence[np.ndarray[Any, Any]], boxes: Sequence[Prompt]) -> list[Decoded]:
    views = [predictor.prepare(embedding) for embedding in predictor.encode(images)]
    return predictor.decode([DecodeRequest(view, views[0], box) for view, box in zip(views, boxes, strict=True)])


def mask_iou(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def service(report: Report, bench: Bench, folder: Path, flags: Sequence[str]) -> None:
    """Clicks in process and over HTTP: warm, cold at places of their own, and of many clients at once."""
    from warm_clicks import at_once, click_ms, clicks

    from wsisam_service.commands.click_costs import boxes

    rounds, clients = (3, 2) if bench.small else (100, CLIENTS)
    with clicks(bench.best, folder, flags, tiles=8) as clicked:

        def post(box: Sequence[float]) -> float:
            return click_ms(clicked.client, clicked.slide_id, box)

        places: Iterator[tuple[float, float, float, float]] = boxes(clicked.slide)
        actions = {"in process": clicked.in_process, "over HTTP": clicked.over_http}
        for action in actions.values():
            for _ in range(3):
                action()
        times: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(rounds):
            for name, action in actions.items():
                times[name].append(milliseconds(action))
        for name, taken in times.items():
            report.clicks(f"{bench.precision} warm click {name}", taken)
        for box in itertools.islice(places, 3):
            post(box)
        cold = [post(box) for box in itertools.islice(places, rounds)]
        report.clicks(f"{bench.precision} cold click over HTTP", cold)
        own = list(itertools.islice(places, clients))
        for box in own:
            post(box)
        times_at_once, rate = at_once(str(clicked.client.base_url), clicked.slide_id, own, CLICKS)
        report.clicks(f"{bench.precision} warm clicks of {len(own)} clients at once", times_at_once, clicks_per_s=rate)


def milliseconds(action: Action) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="lite_medsam")
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--adapters", help="as of `wsisam serve`; by default random ones on both branches")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few and little, to try the script")
    parser.add_argument("--views", type=int, default=256, help="prepared views that prompts are decoded on")
    parser.add_argument("--rounds", type=int, default=50, help="calls behind a row, at most")
    parser.add_argument("--row-seconds", type=float, default=0.15, help="time behind a row, about")
    parser.add_argument("--seconds", type=float, default=90, help="after this, parts that have not begun are left out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py needs a CUDA device; --device cpu --small tries the script without one")
    if options.small:
        options.rounds, options.row_seconds = 2, 0.1
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


PARTS = ("correctness", "encode", "decode", "peers", "service")


def run(options: argparse.Namespace, folder: Path) -> None:
    config, on_cuda = MODELS[options.model], options.device != "cpu"
    weights = base_of(config, folder)
    base = load_base_weights(weights, config)
    adapters = options.adapters or random_adapters(config, base, folder)
    model = {"weights": weights, "adapters": adapters, "device": options.device}
    about = {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "model": config.name,
        "adapters": options.adapters or "random, both branches",
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    print(json.dumps(about), flush=True)
    report = Report(options, about)
    best = rates(report, torch.device(options.device), options.small)
    reference = load_model(config.name, **model | {"device": "cpu"}, engine="torch")
    work = work_of(reference, images_of(1, config.image_size)[0])
    about["work"] = {
        stage: {"flop": one.flop, "weight_bytes": one.weights, "other_bytes": one.moved} for stage, one in work.items()
    }
    for number, precision in enumerate(options.precision):
        if report.out_of_time:
            print(f"out of time before {precision}", flush=True)
            break
        bench = Bench(report, options, precision, model)
        about["engines"] = {name: predictor.engine for name, predictor in bench.predictors.items()}
        rate = best[DTYPES[precision]]
        parts: dict[str, Action] = {
            "correctness": lambda b=bench: correctness(report, b, reference),
            "encode": lambda b=bench, r=rate: b.encodes(work["encode a view"], r),
            "decode": lambda b=bench, r=rate: b.decodes(work, r),
        }
        if number == 0:
            flags = [text for name, value in model.items() for text in (f"--{name}", str(value))]
            flags += ["--model", config.name, "--precision", precision]
            flags += [] if on_cuda else ["--engine", "torch"]
            parts["peers"] = lambda b=bench: peers(report, b, base)
            parts["service"] = lambda b=bench, f=flags: service(report, b, folder, f)
            bench.host()
        for name, part in parts.items():
            if name not in options.only or report.out_of_time:
                continue
            try:
                part()
            except Exception as error:  # the other parts' figures are worth having
                report.add(f"{precision} {name} failed", error=f"{type(error).__name__}: {error}"[:300])
        if on_cuda:
            report.add(f"{precision} device memory at most", gib=torch.cuda.max_memory_reserved() / 2**30)
        del bench, parts
        if on_cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
