"""Training of adapters: a step, a run of steps, and its checkpoint.

Every step draws from a random stream of its own, made of the seed and the step's number. A run that was interrupted
and resumed is therefore the same as one that was not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wsisam_model.errors import CheckpointError
from wsisam_model.prompt_encoder import GRID
from wsisam_model.prompts import MASK_SIDE, Prompt
from wsisam_model.train import draws
from wsisam_model.train.cache import Embed
from wsisam_model.train.forward import CELL, WHOLE, Query, TrainingDecoder, Window
from wsisam_model.train.losses import mask_loss
from wsisam_model.train.recipe import Recipe
from wsisam_model.train.samples import Mask, Sample

WINDOW_MARGIN = 1.5
"""A window is this much larger than the object, so that what lies around it counts too."""
MIN_WINDOW, MAX_WINDOW = 20, 48
"""Sides of windows in cells."""
POINT_COUNTS = (1, 1, 1, 1, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8, 10)
CHECKPOINT_EVERY = 100


@dataclass(frozen=True, slots=True)
class StepLog:
    """One row of the log. Losses are means over the step's prompts; NaN where a kind did not occur."""

    step: int
    loss: float
    box_loss: float
    point_loss: float
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class _Draft:
    """A prompt of a step: what the user says, how the network is asked, and the part of the view that counts;
    `corrected` if one more click follows.
    """

    sample: Sample
    truth: Mask
    """The object in the decoder's pixels, bool (256, 256)."""
    user: Prompt
    query: Query
    window: Window
    corrected: bool

    @property
    def is_box(self) -> bool:
        return not self.user.points


class Trainer:
    """Trains `decoder.adapters` in place on `samples`; `average` is the state to keep. Writes `checkpoint.pt` and
    `log.csv` into `folder`. `fingerprint` tells this training from others of the same recipe (`provenance`).
    """

    def __init__(
        self,
        decoder: TrainingDecoder,
        samples: Sequence[Sample],
        embed: Embed,
        recipe: Recipe,
        folder: Path,
        *,
        fingerprint: str,
    ) -> None:
        if not samples:
            raise ValueError("there is nothing to train on")
        self.decoder, self.samples, self.recipe, self.folder = decoder, samples, recipe, folder
        self.embed, self.fingerprint = embed, fingerprint
        self.weights = _sampling_weights(samples)
        self._known_places: dict[int, draws.Places] = {}
        self.step = 0
        self.log: list[StepLog] = []
        self._rates, groups = [], []
        for rate, parameters in _parameter_groups(decoder, recipe):
            self._rates.append(rate)
            groups.append({"params": parameters, "lr": rate})
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.average = {key: tensor.detach().clone() for key, tensor in decoder.adapters.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, progress: Callable[[StepLog], None] = lambda row: None, *, until: int | None = None) -> None:
        """Train up to step `until`, or to the recipe's end; `progress` hears of every step."""
        end = self.recipe.steps if until is None else min(until, self.recipe.steps)
        while self.step < end:
            with _rounded_products():
                row = self._one_step()
            self.log.append(row)
            progress(row)
            if self.step % CHECKPOINT_EVERY == 0 or self.step == end:
                self.save()

    def save(self) -> None:
        """Write the checkpoint and the log; never half of them."""
        state = {
            "step": self.step,
            "recipe": self.recipe.to_json(),
            "fingerprint": self.fingerprint,
            "adapters": self.decoder.adapters.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "log": [asdict(row) for row in self.log],
        }
        partial = self.folder / "checkpoint.part"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")
        self._write_log()

    def _write_log(self) -> None:
        partial = self.folder / "log.part"
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(StepLog.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.log)
        partial.replace(self.folder / "log.csv")

    def resume(self) -> bool:
        """Continue from the folder's checkpoint, if there is one of this very training. ValueError for another's,
        `CheckpointError` for a damaged one.
        """
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return False
        state = self._read(path)
        if state.get("recipe") != self.recipe.to_json():
            raise ValueError(f"{path.name} was made by another recipe; start in another folder")
        if state.get("fingerprint") != self.fingerprint:
            raise ValueError(f"{path.name} was made of other data, start or base weights; start in another folder")
        self.decoder.adapters.load_state_dict(state["adapters"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self.log = [StepLog(**row) for row in state["log"]]
        self._write_log()  # what was stopped between its checkpoint and its log has an older one
        return True

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, weights_only=True, map_location=self.decoder.position.device)
        except Exception as error:  # torch raises a dozen kinds on files that are truncated, foreign or hold code
            raise CheckpointError(f"{path.name}: damaged; remove it, or start in another folder") from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{path.name}: not the checkpoint of a training; start in another folder")
        return state

    def _one_step(self) -> StepLog:
        rng = np.random.default_rng([self.recipe.seed, self.step])
        scale = self._schedule()
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        count = min(self.recipe.samples_per_step, len(self.samples))
        chosen = rng.choice(len(self.samples), count, replace=False, p=self.weights)
        drafts = self._corrected([d for index in chosen for d in self._drafts(self.samples[index], rng)], rng)
        losses = self._losses(drafts)
        self.optimiser.zero_grad()
        torch.autograd.backward(losses.mean())
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimiser.step()
        self.step += 1
        self._follow()
        boxes = torch.tensor([draft.is_box for draft in drafts])
        values = losses.detach().cpu()
        return StepLog(
            self.step,
            float(values.mean()),
            float(values[boxes].mean()),
            float(values[~boxes].mean()),
            self.recipe.learning_rate * scale,
        )

    def _follow(self) -> None:
        """The running mean one step on. Young, it follows fast, so that where training began is soon forgotten."""
        keep = min(self.recipe.average, self.step / (self.step + 10))
        for key, tensor in self.decoder.adapters.state_dict().items():
            self.average[key].lerp_(tensor, 1 - keep)

    def _schedule(self) -> float:
        """Linear warm-up, then a cosine down to nothing."""
        warm = min(1.0, (self.step + 1) / max(1, self.recipe.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.steps))

    def _losses(self, drafts: Sequence[_Draft]) -> Tensor:
        """Each draft's loss inside its window, (n,)."""
        answers = self.decoder([draft.query for draft in drafts])
        by_side: dict[int, list[int]] = {}
        for row, draft in enumerate(drafts):
            by_side.setdefault(draft.window.side, []).append(row)
        losses: dict[int, Tensor] = {}
        for rows in by_side.values():
            logits = [_part(answers[row].logits, drafts[row].query.window, drafts[row].window) for row in rows]
            truths = [drafts[row].truth[drafts[row].window.pixels] for row in rows]
            truth = torch.from_numpy(np.stack(truths)).to(self.decoder.position)
            losses |= zip(rows, mask_loss(torch.stack(logits), truth), strict=True)
        return torch.stack([losses[row] for row in range(len(drafts))])

    def _drafts(self, sample: Sample, rng: np.random.Generator) -> list[_Draft]:
        hr = self.embed(sample.hr)
        lr = None if self.recipe.branches == "hr" else self.embed(sample.lr)
        truth = draws.low_resolution(sample.mask)
        window = WHOLE if rng.random() < self.recipe.whole else window_around(sample, rng)
        drafts = []
        for _ in range(self.recipe.prompts_per_sample):
            user, corrected = self._prompt(sample, rng)
            with_lr, without_hr = self._branches(rng)
            decoded = window if self.decoder.position.device.type == "cpu" else WHOLE  # rows of one size are one batch
            shown, weight = self._shown(user, rng), 0.0 if without_hr else 1.0
            query = Query(hr, lr if with_lr else None, shown, decoded, hr_token_weight=weight)
            drafts.append(_Draft(sample, truth, user, query, window, corrected))
        return drafts

    def _branches(self, rng: np.random.Generator) -> tuple[bool, bool]:
        """Whether this prompt sees its LR view, and whether it is answered without the HR token."""
        if self.recipe.branches == "hr":
            return False, False
        drop_lr, drop_hr = rng.random(2) < (self.recipe.lr_dropout, self.recipe.hr_dropout)
        with_lr = not drop_lr or self.recipe.branches == "lr"
        return with_lr, with_lr and bool(drop_hr)

    def _prompt(self, sample: Sample, rng: np.random.Generator) -> tuple[Prompt, bool]:
        """What a user may say, and whether one more click is to follow."""
        recipe, places = self.recipe, self._places(sample)
        if rng.random() < recipe.boxes:
            noise = 0.0 if rng.random() < recipe.tight else float(rng.uniform(0, recipe.box_noise))
            return Prompt(box=draws.noisy_box(places.box, noise, rng)), False
        count = int(rng.choice(POINT_COUNTS))
        negatives = int(rng.integers(1, 4)) if rng.random() < 0.4 else 0
        positive, negative = draws.some(places.inside, count, rng), draws.some(places.beside, negatives, rng)
        clicks = Prompt(points=(*positive, *negative), labels=(1,) * len(positive) + (0,) * len(negative))
        return clicks, rng.random() < recipe.corrected

    def _places(self, sample: Sample) -> draws.Places:
        if id(sample) not in self._known_places:
            self._known_places[id(sample)] = draws.places(sample.mask)
        return self._known_places[id(sample)]

    def _shown(self, user: Prompt, rng: np.random.Generator) -> Prompt:
        """One of the forms in which the network may see what the user says."""
        size = (self.decoder.config.image_size, self.decoder.config.image_size)
        readings = self.decoder.adapters.prompt.readings(user, size)
        return readings[int(rng.integers(len(readings)))]

    def _corrected(self, drafts: Sequence[_Draft], rng: np.random.Generator) -> list[_Draft]:
        """`drafts`, where it is wanted with one click more where the present adapters answer wrongly."""
        wanted = [draft for draft in drafts if draft.corrected]
        if not wanted:
            return list(drafts)
        with torch.no_grad():
            answers = self.decoder([replace(draft.query, window=WHOLE) for draft in wanted])
        masks = torch.stack([answer.logits > 0 for answer in answers]).cpu().numpy()
        earlier = torch.stack([answer.sam for answer in answers]).float().cpu().numpy()
        again = {}
        for draft, mask, sam in zip(wanted, masks, earlier, strict=True):
            click = draws.next_click(draft.truth, mask)
            if click is None:
                continue
            (x, y), label = click
            scale = len(draft.sample.mask) / MASK_SIDE
            place = ((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5)
            user = Prompt(points=(*draft.user.points, place), labels=(*draft.user.labels, label), mask_hr=sam)
            again[id(draft)] = replace(draft, user=user, query=replace(draft.query, prompt=self._shown(user, rng)))
        return [again.get(id(draft), draft) for draft in drafts]


@contextmanager
def _rounded_products() -> Iterator[None]:
    """CUDA's products in TF32, several times faster and close enough for gradients."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _part(logits: Tensor, decoded: Window, wanted: Window) -> Tensor:
    return logits if decoded == wanted else logits[wanted.pixels]


def window_around(sample: Sample, rng: np.random.Generator) -> Window:
    """A random window that holds the object as far as it fits."""
    scale = MASK_SIDE / len(sample.mask)  # the decoder's pixels may all miss a thin object, so its own box is taken
    x0, y0, x1, y1 = ((edge + 0.5) * scale - 0.5 for edge in draws.tight_box(sample.mask))
    side = math.ceil(WINDOW_MARGIN * max(x1 - x0, y1 - y0) / CELL)
    side = min(MAX_WINDOW, max(MIN_WINDOW, side))

    def place(low: float, high: float) -> int:
        first, last = math.ceil(high / CELL) - side, math.floor(low / CELL)
        if first > last:
            first, last = last, first
        first, last = max(0, min(first, GRID - side)), max(0, min(last, GRID - side))
        return int(rng.integers(first, last + 1))

    return Window(place(y0, y1), place(x0, x1), side)


def _sampling_weights(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Chance of each sample: sets count by the root of their size, so that small ones are heard."""
    sizes: dict[str, int] = {}
    for sample in samples:
        sizes[sample.dataset] = sizes.get(sample.dataset, 0) + 1
    weights = np.array([sizes[sample.dataset] ** -0.5 for sample in samples])
    return np.asarray(weights / weights.sum())


def _parameter_groups(decoder: TrainingDecoder, recipe: Recipe) -> list[tuple[float, list[nn.Parameter]]]:
    """(learning rate, tensors) of what learns; everything else is frozen here."""
    adapters = decoder.adapters
    adapters.requires_grad_(False)
    groups: list[tuple[float, list[nn.Parameter]]] = []
    if recipe.branches in ("hr", "both"):
        groups.append((recipe.learning_rate, list(adapters.hr.parameters())))
    if recipe.branches in ("lr", "both"):
        # The LR branch gives its token only: its fusion and mask features are for LR masks, which carry no loss here.
        tokens = [*adapters.lr.hf_token.parameters(), *adapters.lr.hf_mlp.parameters()]
        groups.append((recipe.lr_branch_rate, tokens))
    if recipe.branches != "lr" and recipe.prompt_rate:
        groups.append((recipe.prompt_rate, list(adapters.prompt.parameters())))
    for _, parameters in groups:
        for parameter in parameters:
            parameter.requires_grad_(True)
    return [group for group in groups if group[1]]
