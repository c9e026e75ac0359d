"""Executor calls as bytes, between gateway and worker: the dataclasses of `jobs`, versioned.

A call is one safetensors blob: a JSON document as the tensor `message`, beside it what is large, views in uint8 and
mask prompts in int8, for their logits are plus and minus ten. So a full request of 256 masks is 16 MiB beside the 6 MiB
of a cold pair of views of 1,024 pixels. A reply is JSON alone. Both sides check what they read: the other one may be a
version older.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from safetensors import SafetensorError
from safetensors.numpy import load, save

from wsisam_model.prompts import MASK_SIDE, Prompt
from wsisam_service.errors import (
    PROBLEMS,
    InvalidRequest,
    Problem,
    ServiceError,
    WorkerUnavailable,
    detail_of,
    problem_of,
)
from wsisam_service.jobs import CacheTier, DecodedMask, DecodeJob, DecodeResult, PixelsNeeded, Rle, ViewPixels

VERSION = 2
CALL_MEDIA_TYPE = "application/vnd.wsisam.call"
_MESSAGE = "message"
_FAILURES: dict[str, type[ServiceError]] = {
    problem.name: cls for cls, problem in PROBLEMS.items() if issubclass(cls, ServiceError)
}

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class DecodeCall:
    """Jobs, and the pixels of those of their views that the worker lacks."""

    jobs: Sequence[DecodeJob]
    pixels: Mapping[str, ViewPixels] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class DecodeReply:
    """A result, a failure or `PixelsNeeded` for each job; the worker's seconds by stage."""

    results: Sequence[DecodeResult | Exception]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class EncodeCall:
    """Views whose embeddings should exist, and their pixels where the worker lacks them."""

    views: Sequence[str]
    pixels: Mapping[str, ViewPixels] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class EncodeReply:
    """Where each view's embedding came from; `missing` are those whose pixels must be sent along."""

    tiers: Mapping[str, CacheTier]
    missing: Sequence[str]
    seconds: Mapping[str, float]


def write_decode_call(call: DecodeCall) -> bytes:
    arrays: Arrays = {}
    jobs = [_job_words(index, job, arrays) for index, job in enumerate(call.jobs)]
    return _write({"jobs": jobs}, call.pixels, arrays)


def read_decode_call(body: bytes) -> DecodeCall:
    """Raises `InvalidRequest` for a body that `write_decode_call` did not write, `WorkerUnavailable` for one of another
    version: there may be a worker that speaks it.
    """
    words, arrays = _read(body)
    try:
        return DecodeCall([_job(index, job, arrays) for index, job in enumerate(words["jobs"])], _pixels(words, arrays))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest("a decode call that cannot be understood") from error


def write_encode_call(call: EncodeCall) -> bytes:
    return _write({"views": list(call.views)}, call.pixels, {})


def read_encode_call(body: bytes) -> EncodeCall:
    """Raises as `read_decode_call` does."""
    words, arrays = _read(body)
    try:
        return EncodeCall([str(key) for key in words["views"]], _pixels(words, arrays))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest("an encode call that cannot be understood") from error


def write_decode_reply(reply: DecodeReply) -> bytes:
    words = [_result_words(result) for result in reply.results]
    return orjson.dumps({"version": VERSION, "results": words, "seconds": reply.seconds})


def read_decode_reply(body: bytes) -> DecodeReply:
    """Raises `WorkerUnavailable` for a body that `write_decode_reply` did not write."""
    words = _read_json(body)
    try:
        return DecodeReply([_result(result) for result in words["results"]], words["seconds"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WorkerUnavailable("a worker's answer cannot be understood") from error


def write_encode_reply(reply: EncodeReply) -> bytes:
    words = {"version": VERSION, "tiers": reply.tiers, "missing": reply.missing, "seconds": reply.seconds}
    return orjson.dumps(words)


def read_encode_reply(body: bytes) -> EncodeReply:
    """Raises `WorkerUnavailable` for a body that `write_encode_reply` did not write."""
    words = _read_json(body)
    try:
        return EncodeReply(words["tiers"], words["missing"], words["seconds"])
    except (KeyError, TypeError) as error:
        raise WorkerUnavailable("a worker's answer cannot be understood") from error


def failure_of(words: Mapping[str, Any]) -> Exception:
    """The error that a problem document stands for; a worker's own fault is ours too, and a plain exception."""
    name = str(words.get("type", "")).removeprefix("/problems/")
    detail, retry_after_s = str(words.get("detail", "")), words.get("retry_after_s")
    failure = _FAILURES.get(name)
    if failure is None:
        return RuntimeError(f"a worker answers: {detail}")
    return failure(detail, retry_after_s=retry_after_s)


def _write(words: Mapping[str, Any], pixels: Mapping[str, ViewPixels], arrays: Arrays) -> bytes:
    keys = list(pixels)
    message = orjson.dumps({"version": VERSION, "pixels": keys, **words})
    views = {f"pixels.{index}": np.ascontiguousarray(pixels[key]) for index, key in enumerate(keys)}
    return bytes(save({_MESSAGE: np.frombuffer(message, np.uint8), **views, **arrays}))


def _read(body: bytes) -> tuple[dict[str, Any], Arrays]:
    try:
        arrays: Arrays = load(body)
        words = orjson.loads(arrays.pop(_MESSAGE).tobytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise InvalidRequest("a call that cannot be understood") from error
    if not isinstance(words, dict) or words.get("version") != VERSION:
        raise WorkerUnavailable(f"gateway and worker speak different versions; this one speaks {VERSION}")
    return words, arrays


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        words = orjson.loads(body)
    except ValueError as error:
        raise WorkerUnavailable("a worker's answer cannot be understood") from error
    if not isinstance(words, dict) or words.get("version") != VERSION:
        raise WorkerUnavailable("gateway and worker speak different versions")
    return words


def _pixels(words: Mapping[str, Any], arrays: Arrays) -> dict[str, ViewPixels]:
    views = {key: arrays[f"pixels.{index}"] for index, key in enumerate(words["pixels"])}
    for view in views.values():
        if view.dtype != np.uint8 or view.ndim != 3 or view.shape[2] != 3:
            raise ValueError("pixels of a view are uint8 (S, S, 3)")
    return views


def _job_words(index: int, job: DecodeJob, arrays: Arrays) -> dict[str, Any]:
    prompt = job.prompt
    for name, logits in (("hr", prompt.mask_hr), ("lr", prompt.mask_lr)):
        if logits is not None:
            whole = arrays[f"mask_{name}.{index}"] = np.ascontiguousarray(logits, np.int8)
            assert np.array_equal(whole, logits)
    return {
        "hr": job.hr,
        "lr": job.lr,
        "box": prompt.box,
        "points": prompt.points,
        "labels": prompt.labels,
        "wider": prompt.wider,
        "adapters": job.adapters,
        "multimask": job.multimask,
        "lr_mask": job.lr_mask,
        "refine_from": job.refine_from,
        "refinable": job.refinable,
        "stability_offset": job.stability_offset,
        "recall": job.recall,
    }


def _job(index: int, words: Mapping[str, Any], arrays: Arrays) -> DecodeJob:
    prompt = Prompt(
        box=None if words["box"] is None else _four(words["box"]),
        points=tuple((float(x), float(y)) for x, y in words["points"]),
        labels=tuple(int(label) for label in words["labels"]),
        mask_hr=_logits(arrays.get(f"mask_hr.{index}")),
        mask_lr=_logits(arrays.get(f"mask_lr.{index}")),
        wider=bool(words.get("wider", False)),
    )
    return DecodeJob(
        hr=str(words["hr"]),
        lr=None if words["lr"] is None else str(words["lr"]),
        prompt=prompt,
        adapters=str(words["adapters"]),
        multimask=bool(words["multimask"]),
        lr_mask=bool(words["lr_mask"]),
        refine_from=words["refine_from"],
        refinable=bool(words["refinable"]),
        stability_offset=words["stability_offset"],
        recall=bool(words.get("recall", False)),
    )


def _four(numbers: Sequence[Any]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, numbers)
    return x0, y0, x1, y1


def _logits(array: npt.NDArray[Any] | None) -> npt.NDArray[np.float32] | None:
    if array is None:
        return None
    if array.dtype != np.int8 or array.shape != (MASK_SIDE, MASK_SIDE):
        raise ValueError(f"mask logits are int8 ({MASK_SIDE}, {MASK_SIDE})")
    return array.astype(np.float32)


def _result_words(result: DecodeResult | Exception) -> dict[str, Any]:
    if isinstance(result, PixelsNeeded):
        return {"missing": result.views}
    if isinstance(result, Exception):
        return {"problem": problem_words(result)}
    return {
        "masks": [(_rle_words(one.mask), one.predicted_iou, one.stability) for one in result.masks],
        "touches": result.touches,
        "lr_mask": None if result.lr_mask is None else _rle_words(result.lr_mask),
        "refine_id": result.refine_id,
        "cache_hr": result.cache_hr,
        "cache_lr": result.cache_lr,
        "adapters": result.adapters,
    }


def problem_words(error: Exception) -> dict[str, Any]:
    """A problem document of `error`, from which `failure_of` makes the error again."""
    problem: Problem = problem_of(error)
    retry_after_s = error.retry_after_s if isinstance(error, ServiceError) else None
    return problem.document(detail_of(error), retry_after_s=retry_after_s)


def _result(words: Mapping[str, Any]) -> DecodeResult | Exception:
    if "missing" in words:
        return PixelsNeeded(tuple(words["missing"]))
    if "problem" in words:
        return failure_of(words["problem"])
    left, top, right, bottom = words["touches"]
    return DecodeResult(
        masks=[DecodedMask(_rle(mask), iou, stability) for mask, iou, stability in words["masks"]],
        touches=(left, top, right, bottom),
        lr_mask=None if words["lr_mask"] is None else _rle(words["lr_mask"]),
        refine_id=words["refine_id"],
        cache_hr=words["cache_hr"],
        cache_lr=words["cache_lr"],
        adapters=words.get("adapters", ""),
    )


def _rle_words(mask: Rle) -> tuple[int, int, str]:
    return (*mask.size, mask.counts)


def _rle(words: Sequence[Any]) -> Rle:
    height, width, counts = words
    return Rle((height, width), counts)
