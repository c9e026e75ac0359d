"""What is kept of an answer so that more clicks can correct it: the prompt, and SAM's logits of both branches; and the
answer itself, for who wants to keep what was shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from wsisam_model.prompts import MAX_POINTS, Prompt
from wsisam_service.errors import InvalidRequest, RefineExpired
from wsisam_service.execution.tasks import all_ended
from wsisam_service.jobs import DecodedMask, Rle
from wsisam_service.stores.embeddings import TieredStore
from wsisam_service.views import slide_part

_log = logging.getLogger(__name__)

MAX_PENDING = 512
"""States on their way to the store; beyond it the store is too slow and further ones are not kept."""


@dataclass(frozen=True, slots=True, eq=False)
class RefineState:
    """An answer's prompt (in pixels of the HR view with key `hr`) and SAM's logits (256, 256) of each branch.

    The LR logits are None where the LR branch made no mask. `answer` is the mask that was given to the client.
    """

    hr: str
    prompt: Prompt
    logits_hr: npt.NDArray[np.float32]
    logits_lr: npt.NDArray[np.float32] | None
    answer: DecodedMask

    def to_bytes(self) -> bytes:
        """A safetensors blob, logits in fp16 (131 kB each); an earlier mask prompt is not kept, the logits hold it."""
        words = {
            "hr": self.hr,
            "box": self.prompt.box,
            "points": self.prompt.points,
            "labels": self.prompt.labels,
            "answer": (self.answer.mask.size, self.answer.mask.counts, self.answer.predicted_iou),
        }
        tensors: dict[str, npt.NDArray[np.float16] | npt.NDArray[np.uint8]] = {
            "prompt": np.frombuffer(json.dumps(words).encode(), dtype=np.uint8),
            "logits_hr": self.logits_hr.astype(np.float16),
        }
        if self.logits_lr is not None:
            tensors["logits_lr"] = self.logits_lr.astype(np.float16)
        return bytes(save(tensors))

    @classmethod
    def from_bytes(cls, blob: bytes) -> RefineState:
        """The state that `to_bytes` wrote. Raises `ValueError` where it is damaged."""
        try:
            tensors = load(blob)
            words = json.loads(tensors["prompt"].tobytes())
            prompt = Prompt(
                box=tuple(words["box"]) if words["box"] else None,
                points=tuple((x, y) for x, y in words["points"]),
                labels=tuple(words["labels"]),
            )
            lr = tensors["logits_lr"].astype(np.float32) if "logits_lr" in tensors else None
            size, counts, predicted_iou = words["answer"]
            answer = DecodedMask(Rle(tuple(size), counts), predicted_iou)
            return cls(words["hr"], prompt, tensors["logits_hr"].astype(np.float32), lr, answer)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError("a damaged refine state") from error

    def continued(self, prompt: Prompt, hr: str) -> Prompt:
        """The earlier prompt with `prompt` added: points join, a new box or mask replaces. Both are on view `hr`.

        Raises `RefineExpired` where the view's key has changed, as it does with weights and formats, and
        `InvalidRequest` for too many points in all.
        """
        if hr != self.hr:
            raise RefineExpired("what the refine token stands for was made otherwise; send the whole prompt")
        if len(self.prompt.points) + len(prompt.points) > MAX_POINTS:
            raise InvalidRequest(f"a prompt has at most {MAX_POINTS} points, those that it corrects included")
        new_mask = prompt.mask_hr is not None
        return replace(
            prompt,
            box=prompt.box or self.prompt.box,
            points=self.prompt.points + prompt.points,
            labels=self.prompt.labels + prompt.labels,
            mask_hr=prompt.mask_hr if new_mask else self.logits_hr,
            mask_lr=prompt.mask_lr if new_mask else self.logits_lr,
        )


class RefineStates:
    """Refine states under ids of the slide and a random number, in a store of their own bound so that they never push
    out embeddings.
    """

    def __init__(self, store: TieredStore) -> None:
        self._store = store
        self._pending: dict[str, RefineState] = {}
        self._writes: set[asyncio.Task[None]] = set()
        self._forgotten: Counter[str] = Counter()

    def times_forgotten(self, hr: str) -> int:
        """How often the slide of view `hr` has been forgotten, for `keep`."""
        return self._forgotten[slide_part(hr)]

    def keep(self, state: RefineState, forgotten: int) -> str:
        """The new id of a state, which works at once; rounding and storing happen behind the caller's back. It is not
        kept where its slide has been forgotten since `times_forgotten` was `forgotten`, when its decode began.
        """
        refine_id = f"{slide_part(state.hr)}:{secrets.token_hex(16)}"
        if self.times_forgotten(state.hr) != forgotten:
            return refine_id
        if len(self._pending) >= MAX_PENDING:
            _log.warning("the store of refine states is too slow; an answer cannot be refined")
            return refine_id
        self._pending[refine_id] = state
        write = asyncio.create_task(self._write(refine_id, state))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return refine_id

    async def load(self, refine_id: str) -> RefineState:
        """The state under an id. Raises `RefineExpired` where its time is over or it was lost."""
        pending = self._pending.get(refine_id)
        if pending is not None:
            return RefineState.from_bytes(pending.to_bytes())  # rounded as it will be, so that timing changes no mask
        hit = await self._store.get(refine_id)
        if hit is None:
            raise RefineExpired("the refine token has expired; send the whole prompt")
        try:
            return RefineState.from_bytes(hit.blob)
        except ValueError as error:
            raise RefineExpired("what the refine token stands for was lost; send the whole prompt") from error

    async def forget(self, fingerprint: str) -> None:
        """Forget the states of a slide, in every tier, and those that are being made."""
        self._forgotten[fingerprint] += 1
        await all_ended(self._writes)
        await self._store.delete_matching(fingerprint)

    async def aclose(self) -> None:
        await all_ended(self._writes)
        await self._store.aclose()

    async def _write(self, refine_id: str, state: RefineState) -> None:
        try:
            await self._store.put(refine_id, await asyncio.to_thread(state.to_bytes))
        finally:
            del self._pending[refine_id]
