"""This implementation against golden vectors of the authors' network, case by case (see `golden` for the files)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsisam_model.checkpoints import AdapterWeights, load_base_weights
from wsisam_model.config import model_config
from wsisam_model.decoder_batch import DecodeRequest
from wsisam_model.errors import CheckpointError
from wsisam_model.golden import Array, Golden, as_array
from wsisam_model.image_encoder import ViT
from wsisam_model.image_encoder.vit import ViTSize
from wsisam_model.network import DualDecoded, ViewFeatures
from wsisam_model.predictor import Predictor
from wsisam_model.preprocessing import lr_from_hr, resize_to_model, to_model_frame, upscale_logits
from wsisam_model.prompt_tensors import branch_prompt
from wsisam_model.registry import base_weights_path

LOGITS, FEATURES, FAST_LOGITS, FAST_MASKS = 1e-3, 1e-4, 1e-2, 1e-4
"""What is allowed: logits and all other numbers of the plain form; logits and 1 - IoU of the masks of the fast form."""

Form = Literal["encoder", "plain", "fast"]

_TOY_VIT = ViTSize(width=32, depth=3, heads=2, global_blocks=(1,), image_size=256, embedding_channels=32)


@dataclass(frozen=True, slots=True)
class ParityRow:
    """One comparison: the largest absolute error of `quantity` in `case`, or 1 - IoU, and what is allowed."""

    case: str
    form: Form
    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False over the tolerance, and for an error that is no number."""
        return self.error <= self.tolerance


def run_parity(
    path: Path,
    *,
    model: str = "lite_medsam",
    device: str = "cpu",
    precision: str = "float32",
    engine: str = "auto",
    weights: Path | None = None,
) -> list[ParityRow]:
    """Every comparison that the golden file at `path` allows. The options are `load_model`'s.

    Raises `CheckpointError` for a file that is not one of golden vectors, or base weights that are missing.
    """
    golden = Golden(path)
    if "weights/pos_embed" in golden:
        return list(_vit_rows(golden))
    config = model_config(model)
    base = load_base_weights(base_weights_path(config, weights), config)
    adapters = AdapterWeights(path.stem, "", {}, golden.state("adapter_high/"), golden.state("adapter_low/"))
    predictor = Predictor(config, base, adapters, device=device, precision=precision, engine=engine)
    rows: list[ParityRow] = []
    for view in golden.views():
        parity = ViewParity(predictor, golden, view)
        rows += parity.view_rows()
        for case in golden.cases(view):
            rows += parity.plain_rows(case)
            rows += parity.fast_rows(case)
    if not rows:
        raise CheckpointError(f"{path.name}: holds no cases")
    return rows


def _vit_rows(golden: Golden) -> Iterator[ParityRow]:
    encoder = ViT(_TOY_VIT)
    encoder.load_state_dict(golden.state("weights/"))
    with torch.inference_mode():
        E, X = encoder(torch.from_numpy(golden.array("in/x")))
    yield ParityRow("vit", "encoder", "embedding", golden.error("out/embedding", E), FEATURES)
    early = golden.error("out/early", X.permute(0, 2, 3, 1))
    yield ParityRow("vit", "encoder", "early", early, FEATURES)


class ViewParity:
    """All comparisons on one pair of views."""

    def __init__(self, predictor: Predictor, golden: Golden, view: str) -> None:
        self.predictor, self.config, self.golden, self.view = predictor, predictor.config, golden, view
        self.images = [golden.image(f"{view}/{branch}_view") for branch in ("hr", "lr")]
        self.size = (self.images[0].shape[0], self.images[0].shape[1])
        self.hr, self.lr = predictor.encode(self.images)
        self.features_hr = ViewFeatures(self.hr.embedding, self.hr.early)
        self.features_lr = ViewFeatures(self.lr.embedding, self.lr.early)
        assert predictor.decoder.adapters is not None
        self.network, self.adapters = predictor.decoder.network, predictor.decoder.adapters

    def view_rows(self) -> Iterator[ParityRow]:
        """What depends on the view alone: resized pixels, E, X, F and the dense positional encoding."""
        parts = (
            ("hr", self.images[0], self.features_hr, self.adapters.hr),
            ("lr", self.images[1], self.features_lr, self.adapters.lr),
        )
        for branch, image, features, adapter in parts:
            if (key := f"{self.view}/{branch}_input256") in self.golden:
                yield self._row("encoder", key, resize_to_model(image, self.config).astype(np.float32), 0.0)
            inter = f"{self.view}/inter/{branch}"
            yield self._row("encoder", f"{inter}_image_embedding", features.embedding, FEATURES)
            error = self.golden.error(f"{inter}_early", features.early, channels_last=True)
            yield ParityRow(f"{self.view}/inter", "encoder", f"{branch}_early", error, FEATURES)
            with torch.inference_mode():
                fused = adapter.fuse(features.embedding[None], features.early[None])[0]
            yield self._row("plain", f"{inter}_fused_feature", fused, FEATURES)
        if (key := f"{self.view}/inter/image_pe") in self.golden:
            yield self._row("plain", key, self.network.prompt_encoder.pe_layer.grid(), FEATURES)

    def plain_rows(self, case: str) -> Iterator[ParityRow]:
        """The readable form, on all prompts of the case at once."""
        yield from self._coordinate_rows(case)
        prompts, multimask = self.golden.prompts(case), self.golden.multimask(case)
        like = self.features_hr.embedding
        hr, lr = (branch_prompt(prompts, self.size, self.config, lr=is_lr, like=like) for is_lr in (False, True))
        with torch.inference_mode():
            views = self.features_hr, hr, self.features_lr, lr
            dual = self.network.dual_decode(self.adapters, *views, multimask=multimask)
            sam_hr = self.network.sam_decode(self.features_hr, hr, multimask=multimask)
            sam_lr = self.network.sam_decode(self.features_lr, lr, multimask=multimask)
        yield from self._dual_rows(case, dual, multimask)
        for branch, (masks, iou) in (("hr", sam_hr), ("lr", sam_lr)):
            yield self._row("plain", f"{case}/out/plain_{branch}", masks, LOGITS)
            yield self._row("plain", f"{case}/out/plain_{branch}_iou", iou, FEATURES)

    def _dual_rows(self, case: str, dual: DualDecoded, multimask: bool) -> Iterator[ParityRow]:
        assert dual.lr is not None
        assert dual.logits_lr is not None
        assert dual.token_lr is not None
        branches = (("hr", dual.hr, dual.token_hr, dual.logits_hr), ("lr", dual.lr, dual.token_lr, dual.logits_lr))
        for name, branch, token, logits in branches:
            yield self._row("plain", f"{case}/out/{name}_final", logits, LOGITS)
            yield self._row("plain", f"{case}/out/{name}_sam", branch.sam_mask(multimask), LOGITS)
            yield self._row("plain", f"{case}/out/{name}_token", token, FEATURES)
            yield self._row("plain", f"{case}/out/{name}_iou", branch.iou, FEATURES)
            sparse = branch.sparse.expand(len(branch.tokens), -1, -1)
            yield self._row("plain", f"{case}/dbg/{name}_sparse", sparse, FEATURES)
            yield self._row("plain", f"{case}/dbg/{name}_tokens_out", branch.tokens, FEATURES)
            if (key := f"{case}/out/{name}_final_view") in self.golden:
                yield self._row("plain", key, upscale_logits(as_array(logits), self.config, self.size), LOGITS)
        yield self._row("plain", f"{case}/out/fused_token", dual.token, FEATURES)
        yield self._row("plain", f"{case}/out/hr_masks4", dual.hr.sam_masks, LOGITS)
        yield self._row("plain", f"{case}/out/hr_own", dual.own_hr, LOGITS)
        yield self._row("plain", f"{case}/out/hr_ours", dual.ours_hr, LOGITS)
        if case == f"{self.view}/box" and (key := f"{self.view}/inter/hr_mask_feature") in self.golden:
            yield self._row("plain", key, dual.features_hr[0], FEATURES)

    def _coordinate_rows(self, case: str) -> Iterator[ParityRow]:
        """The floor map to the LR view and the scaling to the model frame."""
        for kind, in_model in (("boxes", "boxes_model"), ("points", "point_coords_model")):
            if f"{case}/in/{kind}" not in self.golden:
                continue
            given = self.golden.array(f"{case}/in/{kind}")
            places = {"hr": given.reshape(len(given), -1, 2)}
            places["lr"] = lr_from_hr(places["hr"], self.size)
            yield self._row("plain", f"{case}/in/lr_{kind}", places["lr"].reshape(given.shape), FEATURES)
            for branch, xy in places.items():
                moved = to_model_frame(xy, self.size, self.config).reshape(given.shape)
                yield self._row("plain", f"{case}/in/{branch}_{in_model}", moved, FEATURES)

    def fast_rows(self, case: str) -> Iterator[ParityRow]:
        """The served form: every prompt of the case with and without the adapters, in one call of the predictor."""
        prompts, multimask = self.golden.prompts(case), self.golden.multimask(case)
        hr, lr = self.predictor.prepare(self.hr), self.predictor.prepare(self.lr)
        dual = [DecodeRequest(hr, lr, prompt, multimask=multimask, lr_mask=True) for prompt in prompts]
        frozen = [DecodeRequest(hr, None, prompt, frozen=True, multimask=multimask) for prompt in prompts]
        answers = self.predictor.decode([*dual, *frozen])
        dual_answers, frozen_answers = answers[: len(prompts)], answers[len(prompts) :]

        final = np.stack([answer.logits[0] for answer in dual_answers])
        final_lr = np.stack([answer.lr_logits for answer in dual_answers if answer.lr_logits is not None])
        yield from self._fast_pair(f"{case}/out/hr_final", final)
        yield from self._fast_pair(f"{case}/out/lr_final", final_lr)
        if (key := f"{case}/out/hr_final_view") in self.golden:
            yield from self._fast_pair(key, upscale_logits(final, self.config, self.size))
        sam_hr = np.stack([answer.sam_logits_hr for answer in dual_answers])
        sam_lr = np.stack([answer.sam_logits_lr for answer in dual_answers if answer.sam_logits_lr is not None])
        yield self._row("fast", f"{case}/out/hr_sam", sam_hr, FAST_LOGITS)
        yield self._row("fast", f"{case}/out/lr_sam", sam_lr, FAST_LOGITS)
        best_first = np.argsort(-self.golden.array(f"{case}/out/plain_hr_iou"), axis=1, kind="stable")
        alone = [answer.logits[np.argsort(order)] for answer, order in zip(frozen_answers, best_first, strict=True)]
        yield self._row("fast", f"{case}/out/plain_hr", np.stack(alone), FAST_LOGITS)

    def _fast_pair(self, key: str, logits: Array) -> Iterator[ParityRow]:
        """The logits and their mask."""
        row = self._row("fast", key, logits, FAST_LOGITS)
        yield row
        yield ParityRow(row.case, "fast", f"{row.quantity} 1-IoU", 1 - self.golden.mask_iou(key, logits), FAST_MASKS)

    def _row(self, form: Form, key: str, value: Tensor | Array, tolerance: float) -> ParityRow:
        case, _, quantity = key.rpartition("/")
        return ParityRow(case.removesuffix("/out"), form, quantity, self.golden.error(key, value), tolerance)
