"""Answers with one set of adapters: what prompts mean, asked of an engine until an answer is sure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from wsisam_model.adapters import Adapters
from wsisam_model.config import ModelConfig
from wsisam_model.decoder_batch import Decoded, DecodeRequest, collate, scatter, to_host
from wsisam_model.engines import Engine
from wsisam_model.fast_decoder import FastDecoder
from wsisam_model.point_box import is_unsure, reread
from wsisam_model.preprocessing import Floats, resized_size, upscale_logits
from wsisam_model.prompt_tensors import check_prompt
from wsisam_model.prompts import MASK_SIDE
from wsisam_model.quality import fused_iou, stability


class AdaptedDecoder:
    """A decoder, with or without adapters, in the engine that runs it. Use it from one thread at a time.

    `max_batch` requests go into one pass; `for_each` calls a function with each of some numbers, in turn or in threads.
    """

    def __init__(
        self,
        decoder: FastDecoder,
        engine: Engine,
        config: ModelConfig,
        *,
        max_batch: int,
        for_each: Callable[..., Iterable[Any]],
    ) -> None:
        self._decoder, self._engine, self._config = decoder, engine, config
        self.max_batch = max_batch
        self._for_each = for_each
        self._calibration = _calibration(decoder.adapters)

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        """The masks of any mixture of requests, in their order, each as if asked alone. Raises `PromptError`.

        What a click may mean is tried one reading after another until an answer is sure; the most stable one stays.
        """
        readings = [self._readings(request) for request in requests]
        answers: dict[int, Decoded] = {}
        for turn in range(max(map(len, readings), default=0)):
            asked = [
                index
                for index, ways in enumerate(readings)
                if turn < len(ways) and (turn == 0 or is_unsure(_stability(answers[index])))
            ]
            found = self._decode_twice([(requests[index], readings[index][turn]) for index in asked])
            for index, answer in zip(asked, found, strict=True):
                if index not in answers or _stability(answer) > _stability(answers[index]):
                    answers[index] = answer
        return [answers[index] for index in range(len(requests))]

    def _decode_twice(self, pairs: Sequence[tuple[DecodeRequest, DecodeRequest]]) -> list[Decoded]:
        """The answers to readings, each beside the request that it reads; where its box was guessed, the answer to the
        box of its own first answer.
        """
        answers = self._decode_each([reading for _, reading in pairs])
        again = {
            row: second
            for row, ((request, reading), answer) in enumerate(zip(pairs, answers, strict=True))
            if (second := self._again(request, reading, answer)) is not None
        }
        for row, answer in zip(again, self._decode_each(list(again.values())), strict=True):
            answers[row] = answer
        return answers

    def _decode_each(self, requests: Sequence[DecodeRequest]) -> list[Decoded]:
        """Batch by batch. A device decodes the next one while threads judge the masks of the last."""
        alike = sorted(range(len(requests)), key=lambda index: _effort(requests[index]))
        chosen = [alike[start : start + self.max_batch] for start in range(0, len(alike), self.max_batch)]
        decoded: list[Iterable[Decoded]] = []
        running: Callable[[], Iterable[Decoded]] | None = None
        for indices in chosen:
            following = self._start([requests[index] for index in indices])
            if running is not None:
                decoded.append(running())
            running = following
        if running is not None:
            decoded.append(running())
        in_order = zip(alike, chain.from_iterable(decoded), strict=True)
        return [answer for _, answer in sorted(in_order, key=lambda pair: pair[0])]

    def _readings(self, request: DecodeRequest) -> list[DecodeRequest]:
        """What the request's clicks may mean to the adapters; the frozen SAM takes prompts as they are."""
        adapters = self._decoder.adapters
        if adapters is None or request.frozen:
            return [request]
        check_prompt(request.prompt)
        prompts = adapters.prompt.readings(request.prompt, request.hr.view_size)
        return [replace(request, prompt=prompt, said=request.prompt) for prompt in prompts]

    def _again(self, request: DecodeRequest, reading: DecodeRequest, answer: Decoded) -> DecodeRequest | None:
        """`reading` with the box of its answer, where the box was guessed from clicks."""
        if reading.prompt is request.prompt:
            return None
        mask = upscale_logits(answer.logits[:1], self._config, request.hr.view_size)[0] > 0
        prompt = reread(request.prompt, reading.prompt, mask)
        return None if prompt is None else replace(reading, prompt=prompt)

    def _start(self, requests: Sequence[DecodeRequest]) -> Callable[[], Iterable[Decoded]]:
        """Decode one batch, on CUDA without a wait for it; what is returned waits and gives the answers."""
        with torch.inference_mode():
            # Positions of prompts need float32 whatever the precision: bfloat16 holds 8 bits of them.
            batch = collate(self._decoder, requests, self._config, self._engine.fuse)
            output = to_host(self._engine.run(batch), batch.layout)
        return lambda: scatter(batch, requests, output, self._predict_iou, self._for_each)

    def _predict_iou(self, logits: Floats, request: DecodeRequest) -> Floats:
        size = resized_size(request.hr.view_size, self._config)
        height, width = (side * MASK_SIDE // self._config.image_size for side in size)
        return fused_iou(logits[:, :height, :width], request.said or request.prompt, self._calibration)


def _stability(answer: Decoded) -> float:
    return float(stability(answer.logits[:1])[0])


def _effort(request: DecodeRequest) -> tuple[bool, int]:
    """Sorts requests so that a batch's rows pad little: mask prompts by themselves, then by number of tokens."""
    prompt = request.prompt
    masked = prompt.mask_hr is not None or prompt.mask_lr is not None
    return masked, len(prompt.points) + 2 * (prompt.box is not None)


def _calibration(adapters: Adapters | None) -> dict[str, Floats]:
    """The calibration of the predicted IoU that the adapters bring."""
    return {} if adapters is None else {name: tensor.cpu().numpy() for name, tensor in adapters.iou.named_buffers()}
