"""OpenVINO on CPU: the encoder, HR's F and the common decodes compiled, everything else in eager torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import openvino
import torch
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn

from wsisam_model.adapters import Adapter
from wsisam_model.decoder_batch import DecoderBatch
from wsisam_model.engines.converted import default_folder, name_of, read_or_convert
from wsisam_model.engines.decoder_graphs import AdaptedGraph, DualGraph, FrozenGraph, FusedGraph
from wsisam_model.engines.precision import EXACT, Precision
from wsisam_model.engines.torch_engine import TorchEngine
from wsisam_model.errors import ModelError
from wsisam_model.fast_decoder import FUSED_ROWS, Branch, DecoderOutput, DecoderView, FastDecoder, Layout
from wsisam_model.image_encoder import ImageEncoder, TinyViT
from wsisam_model.image_encoder.tiny_vit import EXACT_MODULES
from wsisam_model.mask_decoder import FEATURES, HF_ROW
from wsisam_model.prompt_encoder import GRID
from wsisam_model.prompts import MASK_SIDE
from wsisam_model.short_attention import SHORT
from wsisam_model.transformer import CROSS_WIDTH, HEADS, WIDTH

_FROZEN = Layout(frozen=1, adapted=0, lr_masks=0, lr_sam=0, lr_tokens=0, masks=1)
_ADAPTED = Layout(frozen=0, adapted=1, lr_masks=0, lr_sam=0, lr_tokens=0, masks=1)
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
_TYPES = {
    torch.float32: openvino.Type.f32,
    torch.bfloat16: openvino.Type.bf16,
    torch.float16: openvino.Type.f16,
}
_DTYPES = {type_: dtype for dtype, type_ in _TYPES.items()}


class OpenVinoEngine:
    """`Engine` on CPU. What is not compiled (mask prompts, several masks, LR masks) is left to torch, in float32.

    A view's tensors and its F are kept in the decoder's format: below float32 in half the memory, which is made ready
    in half the time. The weights come in float32, whatever `precision` is. `folder` keeps the converted networks, by
    default the user's cache folder. `warnings` has what went wrong without being in the way. Raises `ModelError` for a
    number format that this CPU does not compute in; other errors of OpenVINO as they are.
    """

    name = "openvino"
    captures_graphs = False

    def __init__(
        self,
        encoder: ImageEncoder,
        decoder: FastDecoder,
        precision: Precision,
        side: int,
        *,
        folder: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self.warnings: list[str] = []
        self.plain = TorchEngine(encoder, decoder, torch.device("cpu"), EXACT)
        self._encoder_format, self._kept = precision
        self._folder = folder or default_folder()
        self._core = openvino.Core()
        self._threads = threads or torch.get_num_threads()
        # In half the bytes the grid's channels are near enough to the caches that strips only cost calls.
        self._fused_rows = FUSED_ROWS if self._kept == torch.float32 else GRID
        shape = (1, 3, side, side)
        rounds = isinstance(encoder, TinyViT) and self._encoder_format != torch.float32
        exact = EXACT_MODULES if rounds else ()
        self._encode = self._compile(
            "encoder", encoder, [torch.zeros(shape)], [shape], self._encoder_format, exact=exact
        )
        self._compile_decodes()
        encoder.to("meta")  # OpenVINO holds the weights now; torch's are never used again

    def beside(self, decoder: FastDecoder) -> Self:
        other = copy.copy(self)
        other.plain = self.plain.beside(decoder)
        other._compile_decodes()
        return other

    def encode(self, inputs: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        # One view a call: cores gain nothing from more, and of a fixed shape OpenVINO plans the memory (75 MB).
        views = [[map_.to(dtype, copy=True) for map_ in _infer(self._encode, [one])] for one in inputs[:, None]]
        E, X = views[0] if len(views) == 1 else (torch.cat(maps) for maps in zip(*views, strict=True))
        return E, X

    def prepare(self, embedding: Tensor, early: Tensor, view_size: tuple[int, int]) -> DecoderView:
        with torch.inference_mode(), self.plain.autocast(self._kept):
            return self.plain.decoder.prepare(embedding, early, view_size, self._kept)

    def fuse(self, view: DecoderView, branch: Branch) -> Tensor:
        if branch == "lr":
            return self.plain.fuse(view, branch)  # few ask for an LR mask
        fused = torch.empty(FEATURES, MASK_SIDE, MASK_SIDE, dtype=self._kept)
        strips = torch.split(fused, MASK_SIDE * self._fused_rows // GRID, dim=1)
        positions = torch.split(view.tensors.positions, self._fused_rows * GRID)
        early = torch.split(view.early, self._fused_rows, dim=1)
        for strip, of_E, of_X in zip(strips, positions, early, strict=True):
            strip.copy_(_infer(self._fuse, [of_E, of_X.to(self._kept)])[0])
        return fused.flatten(1)

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        inputs = batch.inputs
        if inputs.dense is not None or inputs.tokens.shape[1] >= SHORT:
            return self.plain.run(batch)
        if batch.layout == _FROZEN and _FROZEN not in self._decodes:
            self._decodes[_FROZEN] = self._compile_frozen()  # 80 MB, which few ask for where there are adapters
        request = self._decodes.get(batch.layout)
        if request is None:
            return self.plain.run(batch)
        tokens, views = inputs.tokens, inputs.views
        if batch.layout == _FROZEN:
            tokens = torch.cat((tokens[:, :HF_ROW], tokens[:, HF_ROW + 1 :]), dim=1)
            sam, iou = _infer(request, [tokens, *views[0]])
            none = sam.new_zeros(0, MASK_SIDE, MASK_SIDE)
            return DecoderOutput(none, sam, iou, none, sam.new_zeros(0, FEATURES))
        lr = [tokens[1:], *views[1]] if batch.layout == _DUAL else []
        token_logits, sam, iou, t = _infer(request, [tokens[:1], inputs.fused_hr[0], *views[0], *lr])
        return DecoderOutput(token_logits, sam, iou, sam.new_zeros(0, MASK_SIDE, MASK_SIDE), t)

    def _compile_decodes(self) -> None:
        """What the plain engine's decoder is asked most."""
        self._decodes: dict[Layout, openvino.InferRequest] = {}
        decoder = self.plain.decoder
        if (adapters := decoder.adapters) is None:
            self._decodes[_FROZEN] = self._compile_frozen()
            return
        self._fuse = self._compile_fuse(adapters.hr)
        self._decodes[_ADAPTED] = self._compile_decoder("adapted", AdaptedGraph(decoder))
        if any(bool(last.any()) for last in adapters.lr.hf_mlp.layers[-1].parameters()):
            self._decodes[_DUAL] = self._compile_decoder("dual", DualGraph(decoder))

    def _compile_fuse(self, adapter: Adapter) -> openvino.InferRequest:
        shapes = [(self._fused_rows * GRID, WIDTH), (adapter.early_channels, self._fused_rows, GRID)]
        graph, example = FusedGraph(self.plain.decoder), [torch.zeros(shape, dtype=self._kept) for shape in shapes]
        return self._compile("fused", graph, example, shapes, self._kept, gives=self._kept)

    def _compile_frozen(self) -> openvino.InferRequest:
        return self._compile_decoder("frozen", FrozenGraph(FastDecoder(self.plain.decoder.network, None)))

    def _compile_decoder(self, part: str, graph: FrozenGraph | AdaptedGraph) -> openvino.InferRequest:
        tokens = (1, -1, WIDTH)
        shapes: list[tuple[int, ...]] = [tokens, *_VIEW_SHAPES]
        if isinstance(graph, AdaptedGraph):
            shapes.insert(1, (FEATURES, MASK_SIDE * MASK_SIDE))
        if isinstance(graph, DualGraph):
            shapes += [tokens, *_VIEW_SHAPES]
        of_tokens, of_views = torch.zeros(1, _EXAMPLE_TOKENS, WIDTH), partial(torch.zeros, dtype=self._kept)
        example = [of_tokens if shape == tokens else of_views(shape) for shape in shapes]
        return self._compile(part, graph, example, shapes, self._kept)

    def _compile(
        self,
        part: str,
        module: nn.Module,
        example: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        precision: torch.dtype,
        *,
        gives: torch.dtype = torch.float32,
        exact: Sequence[str] = (),
    ) -> openvino.InferRequest:
        """`module` as a compiled network that takes tensors like `example` and gives some of the format `gives`."""
        if not computes_in(precision):
            raise ModelError(f"OpenVINO on this CPU does not compute in {precision}".replace("torch.", ""))
        name = name_of(part, [*module.named_parameters(), *module.named_buffers()], shapes, exact)
        model, warning = read_or_convert(self._folder, name, _converter(module, example, shapes), exact)
        if warning and warning not in self.warnings:
            self.warnings.append(warning)
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],  # OpenVINO's own default is bfloat16 where there is one
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        cast = PrePostProcessor(model)
        for index, tensor in enumerate(example):
            cast.input(index).tensor().set_element_type(_TYPES[tensor.dtype])
        for index in range(len(model.outputs)):
            cast.output(index).tensor().set_element_type(_TYPES[gives])
        return self._core.compile_model(cast.build(), "CPU", config).create_infer_request()


def _converter(
    module: nn.Module, example: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
) -> Callable[[], openvino.Model]:
    def convert() -> openvino.Model:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, of sizes that the shapes fix
            exact = tuple(tensor.float() for tensor in example)
            return openvino.convert_model(module, example_input=exact, input=list(shapes))

    return convert


def _infer(request: openvino.InferRequest, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One call, inputs read where they lie. The outputs are OpenVINO's buffers, which the next call overwrites."""
    held = [tensor.contiguous() for tensor in inputs]  # until the end: OpenVINO does not hold them
    for index, tensor in enumerate(held):
        request.set_input_tensor(index, _shared(tensor))
    request.infer()
    return [_read(output) for output in request.output_tensors]


def _shared(tensor: Tensor) -> openvino.Tensor:
    """`tensor`, contiguous, where it lies. Its bytes are handed over, since numpy has no bfloat16."""
    return openvino.Tensor(
        tensor.flatten().view(torch.uint8).numpy(), openvino.Shape(tensor.shape), _TYPES[tensor.dtype]
    )


def _read(output: openvino.Tensor) -> Tensor:
    """`output` where it lies; numpy has it as float16 where it is bfloat16."""
    return torch.from_numpy(output.data).view(_DTYPES[output.element_type])


def computes_in(precision: torch.dtype) -> bool:
    """Whether this CPU has instructions for that format."""
    if precision == torch.float32:
        return True
    return _CAPABILITIES[precision] in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
