"""What the executor needs of a model. Torch-free, so that everything above it runs with a stand-in of numpy.

`PredictorBackend` is the one place of the service that touches the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from wsisam_model.config import ModelConfig
from wsisam_model.prompts import Prompt
from wsisam_service.jobs import ViewPixels

if TYPE_CHECKING:
    from wsisam_model.decoder_batch import DecodeRequest
    from wsisam_model.embedding import Embedding
    from wsisam_model.fast_decoder import DecoderView
    from wsisam_model.int8_embedding import Int8Embedding
    from wsisam_model.predictor import Predictor

    StoredEmbedding = Embedding | Int8Embedding

StoreFormat = Literal["float16", "int8"]
Logits = npt.NDArray[np.float32]


class Encoded(Protocol):
    """A view's embedding as the store keeps it: frozen encoder output, without adapters."""

    @property
    def view_size(self) -> tuple[int, int]:
        """(h, w) of the view in pixels."""
        ...

    def to_bytes(self) -> bytes: ...


class Prepared(Protocol):
    """A view in device memory, ready for the decoder. It may grow when a decode adds its fused map."""

    @property
    def nbytes(self) -> int: ...


E = TypeVar("E", bound=Encoded)
V = TypeVar("V", bound=Prepared)


@dataclass(frozen=True, slots=True, eq=False)
class DecodeItem(Generic[V]):
    """One prompt on prepared views. `adapters` are those called so, None leaves it to how `hr` looks; `frozen` is SAM
    without any, which looks at `hr` alone.
    """

    hr: V
    lr: V | None
    prompt: Prompt
    adapters: str | None = None
    frozen: bool = False
    multimask: bool = False
    lr_mask: bool = False
    lr_sam: bool = False
    """SAM's logits of the LR branch too, for a later correction; they cost a third of a decode."""


class Decoded(Protocol):
    """A prompt's logits, each (256, 256) float32 in the model frame; `logits` and `predicted_iou` best first."""

    @property
    def logits(self) -> Logits:
        """(n, 256, 256); n is 1, or 3 with multimask."""
        ...

    @property
    def predicted_iou(self) -> Logits:
        """(n,)."""
        ...

    @property
    def sam_logits_hr(self) -> Logits: ...

    @property
    def sam_logits_lr(self) -> Logits | None: ...

    @property
    def lr_logits(self) -> Logits | None: ...


class AdapterFacts(Protocol):
    """The adapters that a model carries, as answers name them."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def uses_lr(self) -> bool:
        """Whether the LR view makes any difference to the HR mask; it is neither read nor encoded otherwise."""
        ...

    @property
    def prompts(self) -> Sequence[str]:
        """Kinds of prompt that they were trained for, beyond the base's own."""
        ...

    @property
    def knows_tissue(self) -> bool:
        """Whether views that look like those of their training are recognised."""
        ...


class Backend(Protocol[E, V]):
    """A model on a device. `encode`, `prepare` and `decode` are called from the device's thread only."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def key_prefix(self) -> str:
        """`{model}:{weights}:{pre}` of the view keys whose embeddings this model makes and understands."""
        ...

    @property
    def adapters(self) -> AdapterFacts | None:
        """Those that are for all tissue."""
        ...

    @property
    def own_adapters(self) -> Sequence[AdapterFacts]:
        """Further ones, for the tissue that each was trained on, or by name; none without `adapters`."""
        ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def engine(self) -> str: ...

    @property
    def captures_graphs(self) -> bool:
        """Whether the first call with a number of items costs much more than the next ones."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What the operator should know, such as an engine that could not be used."""
        ...

    def encode(self, images: Sequence[ViewPixels]) -> Sequence[E]: ...

    def load(self, blob: bytes) -> E:
        """An embedding from its `to_bytes`; raises where the blob is not one of this model's."""
        ...

    def prepare(self, embedding: E) -> V: ...

    def adapters_of(self, item: DecodeItem[V]) -> AdapterFacts | None:
        """Those that answer `item`, None for the frozen SAM."""
        ...

    def decode(self, items: Sequence[DecodeItem[V]]) -> Sequence[Decoded]: ...

    def upscale(self, logits: Logits, view_size: tuple[int, int]) -> Logits:
        """Logits (n, 256, 256) in the pixels of a view of `view_size`, (n, h, w)."""
        ...


def all_adapters(backend: Backend[Any, Any]) -> list[AdapterFacts]:
    """Those for all tissue and those beside them; none where the model is the frozen SAM alone."""
    return [*([] if backend.adapters is None else [backend.adapters]), *backend.own_adapters]


class PredictorBackend:
    """`Backend` over the network in torch or another engine. Importing it costs nothing, making one imports torch.

    Embeddings are rounded at once to how the stores keep them, `store_format`, so that a mask is the same wherever its
    view's embedding comes from.
    """

    def __init__(self, predictor: Predictor, store_format: StoreFormat = "float16") -> None:
        from wsisam_model.decoder_batch import DecodeRequest
        from wsisam_model.embedding import Embedding
        from wsisam_model.int8_embedding import Int8Embedding
        from wsisam_model.preprocessing import upscale_logits

        self._predictor = predictor
        self._request = DecodeRequest
        self._int8 = Int8Embedding if store_format == "int8" else None
        self._float16 = Embedding
        self._upscale = upscale_logits

    @property
    def config(self) -> ModelConfig:
        return self._predictor.config

    @property
    def key_prefix(self) -> str:
        prefix = self._predictor.key_prefix
        return f"{prefix}-int8" if self._int8 else prefix  # the masks differ a little

    @property
    def adapters(self) -> AdapterFacts | None:
        return self._predictor.adapters

    @property
    def own_adapters(self) -> Sequence[AdapterFacts]:
        return self._predictor.own

    @property
    def device(self) -> str:
        return self._predictor.device

    @property
    def precision(self) -> str:
        return self._predictor.precision

    @property
    def engine(self) -> str:
        return self._predictor.engine

    @property
    def captures_graphs(self) -> bool:
        return self._predictor.captures_graphs

    @property
    def warnings(self) -> Sequence[str]:
        return self._predictor.warnings

    def encode(self, images: Sequence[ViewPixels]) -> Sequence[StoredEmbedding]:
        if self._int8:
            return [self._int8.of(one) for one in self._predictor.encode(images)]
        return self._predictor.encode(images, halved=True)

    def load(self, blob: bytes) -> StoredEmbedding:
        return (self._int8 or self._float16).from_bytes(blob)

    def prepare(self, embedding: StoredEmbedding) -> DecoderView:
        exact = embedding if isinstance(embedding, self._float16) else embedding.restored()
        return self._predictor.prepare(exact)

    def decode(self, items: Sequence[DecodeItem[DecoderView]]) -> Sequence[Decoded]:
        return self._predictor.decode([self._asked(item) for item in items])

    def adapters_of(self, item: DecodeItem[DecoderView]) -> AdapterFacts | None:
        return self._predictor.adapters_of(self._asked(item))

    def upscale(self, logits: Logits, view_size: tuple[int, int]) -> Logits:
        return self._upscale(logits, self.config, view_size)

    def _asked(self, item: DecodeItem[DecoderView]) -> DecodeRequest:
        return self._request(
            item.hr,
            item.lr,
            item.prompt,
            adapters=item.adapters,
            frozen=item.frozen,
            multimask=item.multimask,
            lr_mask=item.lr_mask,
            lr_sam=item.lr_sam,
        )
