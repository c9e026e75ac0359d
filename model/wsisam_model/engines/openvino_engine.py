"""OpenVINO on CPU: the encoder and the common decodes compiled, everything else in eager torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import openvino
import torch
from torch import Tensor, nn

from wsisam_model.decoder_batch import DecoderBatch
from wsisam_model.engines.converted import default_folder, name_of, read_or_convert
from wsisam_model.engines.decoder_graphs import DualGraph, FrozenGraph
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.errors import ModelError
from wsisam_model.fast_decoder import DecoderOutput, FastDecoder, Layout
from wsisam_model.mask_decoder import FEATURES, HF_ROW
from wsisam_model.prompt_encoder import GRID
from wsisam_model.prompts import MASK_SIDE
from wsisam_model.short_attention import SHORT
from wsisam_model.transformer import CROSS_WIDTH, HEADS, WIDTH

_FROZEN = Layout(frozen=1, adapted=0, lr_masks=0, lr_sam=0, lr_tokens=0, masks=1)
_DUAL = Layout(frozen=0, adapted=1, lr_masks=0, lr_sam=0, lr_tokens=1, masks=1)

_POSITIONS = GRID * GRID
_HEAD = CROSS_WIDTH // HEADS
_VIEW_SHAPES = (
    (_POSITIONS, WIDTH),
    (HEADS, _HEAD, _POSITIONS),
    (HEADS, _POSITIONS, _HEAD),
    (HEADS, _HEAD, _POSITIONS),
)
_EXAMPLE_TOKENS = 8
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_CAPABILITIES = {torch.bfloat16: "BF16", torch.float16: "FP16"}


class OpenVinoEngine:
    """`Engine` on CPU around a torch engine that takes what is not compiled: mask prompts, several masks, LR masks.

    `folder` keeps the converted networks, by default the user's cache folder. `warnings` has what went wrong without
    being in the way. Raises `ModelError` for a number format that this CPU does not compute in; other errors of
    OpenVINO as they are.
    """

    name = "openvino"

    def __init__(
        self, plain: TorchEngine, side: int, *, folder: Path | None = None, threads: int | None = None
    ) -> None:
        self.warnings: list[str] = []
        self._plain = plain
        self._folder = folder or default_folder()
        self._core = openvino.Core()
        self._threads = threads or torch.get_num_threads()
        self._encode = self._compile(
            "encoder", plain.encoder, [torch.zeros(1, 3, side, side)], [(-1, 3, side, side)], plain.precision.encoder
        )
        view = [torch.zeros(shape) for shape in _VIEW_SHAPES]
        shapes: list[tuple[int, ...]] = list(_VIEW_SHAPES)
        decoder, precision = plain.decoder, plain.precision.decoder
        tokens = torch.zeros(1, _EXAMPLE_TOKENS, WIDTH)
        self._frozen = self._compile(
            "frozen",
            FrozenGraph(FastDecoder(decoder.network, None)),  # converted once, whatever the adapters
            [tokens, *view],
            [(1, -1, WIDTH), *shapes],
            precision,
        )
        self._dual: openvino.InferRequest | None = None
        if decoder.adapters is not None:
            fused = (FEATURES, MASK_SIDE * MASK_SIDE)
            self._dual = self._compile(
                "dual",
                DualGraph(decoder),
                [tokens, tokens, torch.zeros(fused), *view, *view],
                [(1, -1, WIDTH), (1, -1, WIDTH), fused, *shapes, *shapes],
                precision,
            )

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        E, X = _infer(self._encode, [inputs])
        return E.clone(), X.clone()  # they outlive the next call

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        inputs = batch.inputs
        short = inputs.dense is None and inputs.tokens.shape[1] < SHORT
        if short and batch.layout == _FROZEN:
            return self._run_frozen(batch)
        if short and batch.layout == _DUAL and self._dual is not None:
            return self._run_dual(self._dual, batch)
        return self._plain.run(batch)

    def _run_frozen(self, batch: DecoderBatch) -> DecoderOutput:
        tokens = batch.inputs.tokens
        tokens = torch.cat((tokens[:, :HF_ROW], tokens[:, HF_ROW + 1 :]), dim=1)
        sam, iou = _infer(self._frozen, [tokens, *batch.inputs.views[0]])
        none = sam.new_zeros(0, MASK_SIDE, MASK_SIDE)
        return DecoderOutput(none, sam, iou, none, sam.new_zeros(0, FEATURES))

    def _run_dual(self, request: openvino.InferRequest, batch: DecoderBatch) -> DecoderOutput:
        tokens, _, views, _, fused, _ = batch.inputs
        token_logits, sam, iou, t = _infer(request, [tokens[:1], tokens[1:], fused[0], *views[0], *views[1]])
        return DecoderOutput(token_logits, sam, iou, sam.new_zeros(0, MASK_SIDE, MASK_SIDE), t)

    def _compile(
        self,
        part: str,
        module: nn.Module,
        example: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        precision: torch.dtype,
    ) -> openvino.InferRequest:
        if precision != torch.float32 and _CAPABILITIES[precision] not in _capabilities(self._core):
            raise ModelError(f"OpenVINO on this CPU does not compute in {precision}".replace("torch.", ""))
        name = name_of(part, [*module.named_parameters(), *module.named_buffers()])
        model, warning = read_or_convert(self._folder, name, _converter(module, example, shapes))
        if warning and warning not in self.warnings:
            self.warnings.append(warning)
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],  # OpenVINO's own default is bfloat16 where there is one
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return self._core.compile_model(model, "CPU", config).create_infer_request()


def _converter(
    module: nn.Module, example: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
) -> Callable[[], openvino.Model]:
    def convert() -> openvino.Model:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, of sizes that the shapes fix
            return openvino.convert_model(module, example_input=tuple(example), input=list(shapes))

    return convert


def _infer(request: openvino.InferRequest, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One call, inputs read where they lie. The outputs are OpenVINO's buffers, which the next call overwrites."""
    for index, tensor in enumerate(inputs):
        request.set_input_tensor(index, openvino.Tensor(tensor.contiguous().numpy(), shared_memory=True))
    request.infer()
    return [torch.from_numpy(output.data) for output in request.output_tensors]


def _capabilities(core: openvino.Core) -> list[str]:
    return list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
