"""What the API takes and gives, as pydantic models: bodies are parsed with them, answers only described by them.

Bodies are strict: unknown fields and texts in place of numbers are refused. What a prompt *means* (inverted box, NaN,
no positive point, outside the slide) is left to `wsisam_service.segmenting.prompts`, where it fails that prompt alone.
Only a body's first fault is told, so lists end at theirs (`fail_fast`): a million faults would take seconds to collect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from wsisam_service.dicom.outlines import MAX_OUTLINES
from wsisam_service.dicom.results import ResultKind, ResultOptions
from wsisam_service.dicom.segmentation import SegmentationType
from wsisam_service.jobs import DEFAULT_ADAPTERS, NO_ADAPTERS, CacheTier
from wsisam_service.masks.geojson import DEFAULT_SIMPLIFY
from wsisam_service.segmenting.prewarm import PrewarmRequest
from wsisam_service.segmenting.prompts import Frame, MaskSpec, PromptSpec, Units
from wsisam_service.segmenting.results import Kept, ResultRequest
from wsisam_service.segmenting.segmenter import MAX_PROMPTS, MaskFormat, SegmentRequest
from wsisam_service.views import MAX_REQUEST_MPP, MIN_REQUEST_MPP

MAX_SIMPLIFY = 64.0
MAX_TEXT = 4096
"""Characters of an id, a refine token or a model's name."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]
BoxXYXY = tuple[float, float, float, float]
PointXYLabel = tuple[float, float, float]
RegionXYWH = tuple[float, float, float, float]
Mpp = Annotated[float, Field(ge=MIN_REQUEST_MPP, le=MAX_REQUEST_MPP, allow_inf_nan=False)]

SEGMENT_EXAMPLES: dict[str, dict[str, Any]] = {
    "box": {
        "summary": "One box",
        "value": {"prompts": [{"box": [1200, 3400, 1850, 4020]}], "format": "both"},
    },
    "points": {
        "summary": "A click on the object and one beside it",
        "value": {"prompts": [{"id": "nucleus", "points": [[1510.5, 3722, 1], [1580, 3800, 0]]}], "mpp": 0.5},
    },
    "um": {
        "summary": "Many boxes, in µm from the corner of the slide's bounds",
        "value": {
            "prompts": [{"box": [300, 850, 460, 1005]}, {"box": [500, 850, 640, 990], "classification": "Tumor"}],
            "units": "um",
            "frame": "bounds",
            "format": "geojson",
        },
    },
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MaskBody(_Body):
    """A COCO RLE over a rectangle in the request's frame and units."""

    size: tuple[int, int] = Field(description="Height and width of the RLE, in its own pixels.")
    counts: str = Field(description="Compressed COCO counts: column-major runs, the first of background.")
    x: float
    y: float
    width: float
    height: float

    def spec(self) -> MaskSpec:
        return MaskSpec(self.size, self.counts, self.x, self.y, self.width, self.height)


class PromptBody(_Body):
    """What points at one object: at least a box, a positive point, a mask or a refine token."""

    id: Text | None = Field(None, description="Comes back with the result.")
    box: BoxXYXY | None = Field(None, description="x0, y0, x1, y1 in the request's frame and units.")
    points: tuple[PointXYLabel, ...] = Field(
        (), fail_fast=True, description="x, y, label; label 1 is on the object, 0 beside it."
    )
    mask: MaskBody | None = None
    refine: Text | None = Field(None, description="Token of an earlier result that this prompt corrects.")
    classification: str | dict[str, JsonValue] | None = Field(
        None, description="QuPath class of the outline: a name, or an object with name and color."
    )

    def spec(self) -> PromptSpec:
        mask = self.mask.spec() if self.mask else None
        return PromptSpec(self.id, self.box, self.points, mask, self.refine, self.classification)


class SegmentBody(_Body):
    """One request: up to 256 prompts on one slide."""

    model_config = ConfigDict(json_schema_extra={"examples": [e["value"] for e in SEGMENT_EXAMPLES.values()]})

    prompts: list[PromptBody] = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
    model: Text | None = Field(None, description="The server's default model where absent.")
    adapters: Text = Field(
        DEFAULT_ADAPTERS,
        description='"default" are those that the tissue calls for, where there are several; or a name of /v1/info; '
        '"none" is the frozen SAM alone.',
    )
    mpp: Mpp | None = Field(
        None,
        description="µm per view pixel; the nearest step of the ladder is taken. Absent: from the prompt's extent.",
    )
    units: Units = Field("px", description="Of every coordinate: level-0 pixels or µm, from the frame's corner.")
    frame: Frame | None = Field(None, description='"level0" where absent; "bounds" as QuPath shows slides with bounds.')
    image_size: tuple[int, int] | None = Field(
        None, description="Width and height that the client takes the image to have, instead of `frame`."
    )
    multimask: bool = Field(False, description="Three masks per prompt, best first.")
    lr_mask: bool = Field(False, description="Also the mask of the low-resolution branch.")
    format: MaskFormat | Literal["dicom-seg", "dicom-ann"] = "rle"
    simplify: float = Field(
        DEFAULT_SIMPLIFY,
        ge=0,
        le=MAX_SIMPLIFY,
        allow_inf_nan=False,
        description="Polygon tolerance in view pixels; 0 keeps every pixel's edge.",
    )

    @property
    def dicom(self) -> ResultKind | None:
        """The kind of DICOM object that is wanted instead of JSON."""
        kinds: dict[str, ResultKind] = {"dicom-seg": "seg", "dicom-ann": "ann"}
        return kinds.get(self.format)

    def request(self, request_id: str, *, format: MaskFormat | None = None) -> SegmentRequest:
        """What the domain is asked; `format` wins over the body's, as the Accept header does."""
        return SegmentRequest(
            prompts=[prompt.spec() for prompt in self.prompts],
            model=self.model,
            adapters=self.adapters,
            mpp=self.mpp,
            units=self.units,
            frame=self.frame,
            image_size=self.image_size,
            multimask=self.multimask,
            lr_mask=self.lr_mask,
            format=format or ("rle" if self.dicom else self.format),  # type: ignore[arg-type]  # mypy joins texts
            simplify=self.simplify,
            request_id=request_id,
        )


class KeptBody(_Body):
    """An earlier answer that is to be kept as it was shown."""

    refine: Text = Field(description="Its refine token.")
    classification: str | dict[str, JsonValue] | None = Field(None, description="QuPath class, as of a prompt.")

    def kept(self) -> Kept:
        return Kept(self.refine, self.classification)


class ResultBody(_Body):
    """One DICOM object of outlines on a slide, given either as `geojson` or by `refine` tokens."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "seg", "refine": [{"refine": "q83vEjRWeJA…"}], "store": True}]}
    )

    kind: ResultKind = Field(description="A segmentation, or bulk annotations.")
    geojson: dict[str, Any] | None = Field(
        None, description="A FeatureCollection of areas in level-0 pixels, as QuPath exports one."
    )
    refine: list[KeptBody] = Field([], max_length=MAX_OUTLINES, fail_fast=True)
    model: Text | None = Field(None, description="What drew the outlines; the default model where absent.")
    adapters: Text = DEFAULT_ADAPTERS
    level: int | None = Field(
        None, ge=0, description="Of a segmentation; where absent the one nearest to the outlines' own pixel size."
    )
    segmentation_type: SegmentationType = "BINARY"
    simplify: float = Field(
        DEFAULT_SIMPLIFY, ge=0, le=MAX_SIMPLIFY, allow_inf_nan=False, description="View pixels; of annotated answers."
    )
    store: bool = Field(False, description="Send the object to the slide's PACS and answer its UIDs.")

    def request(self) -> ResultRequest:
        """What the domain is asked."""
        return ResultRequest(
            options=ResultOptions(self.kind, self.level, self.segmentation_type),
            geojson=self.geojson,
            kept=[kept.kept() for kept in self.refine],
            model=self.model,
            adapters=self.adapters,
            simplify=self.simplify,
        )


class StoredAnswer(BaseModel):
    """Where a PACS keeps an object."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


class PrewarmBody(_Body):
    """Views to encode before they are asked for: those of boxes and points to come, or a lattice over a region."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"region": [0, 0, 4096, 4096], "mpp": 1.0}]})

    region: RegionXYWH | None = Field(None, description="x, y, width, height.")
    boxes: tuple[BoxXYXY, ...] = Field((), max_length=MAX_PROMPTS, fail_fast=True)
    points: tuple[tuple[float, float], ...] = Field((), max_length=MAX_PROMPTS, fail_fast=True)
    mpp: Mpp | None = None
    units: Units = "px"
    frame: Frame | None = None
    image_size: tuple[int, int] | None = None
    wait: bool = Field(False, description="Answer only when every view is encoded.")

    def request(self) -> PrewarmRequest:
        """What the domain is asked."""
        return PrewarmRequest(
            region=self.region,
            boxes=self.boxes,
            points=self.points,
            mpp=self.mpp,
            units=self.units,
            frame=self.frame,
            image_size=self.image_size,
        )


class PrewarmAnswer(BaseModel):
    """How many views the request means, HR and LR, and how many of them are new."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"views": 50, "new": 31, "done": False}]})

    views: int
    new: int
    done: bool


class RleAnswer(BaseModel):
    size: tuple[int, int] = Field(description="Height and width.")
    counts: str


class ViewAnswer(BaseModel):
    """The level-0 rectangle that a mask covers."""

    x: float
    y: float
    width: float
    height: float
    mpp: float = Field(description="µm per view pixel.")
    size: tuple[int, int] = Field(description="Width and height in view pixels.")


class RankedMaskAnswer(BaseModel):
    mask: RleAnswer
    predicted_iou: float


class LrAnswer(BaseModel):
    mask: RleAnswer
    view: ViewAnswer


class CacheAnswer(BaseModel):
    """Where the embeddings of the two views came from."""

    hr: CacheTier
    lr: CacheTier | None


class ProblemAnswer(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/problems/invalid-box",
                    "title": "The box is inverted or empty",
                    "status": 422,
                    "detail": "a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1",
                    "request_id": "5f0c7e0e3b7a4a0f9a3f5a1d2c3b4a59",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[dict[str, Any]] | None = Field(None, description="One per prompt, where every prompt failed.")


class ResultAnswer(BaseModel):
    """One prompt's outline, or its `problem` and nothing else but the `id`."""

    id: str | None
    problem: ProblemAnswer | None = None
    mask: RleAnswer | None = Field(None, description="Covers the rectangle `view`. Not with format geojson.")
    view: ViewAnswer | None = None
    bbox: BoxXYXY | None = Field(None, description="x0, y0, x1, y1 in pixels of the request's frame.")
    area_um2: float | None = None
    predicted_iou: float | None = None
    touches_edge: bool | None = None
    refine: str | None = None
    cache: CacheAnswer | None = None
    adapters: str | None = Field(None, description='Name of those that drew it, "none" for the frozen SAM.')
    geojson: dict[str, Any] | None = Field(None, description="A Feature; null for an empty mask. Not with format rle.")
    masks: list[RankedMaskAnswer] | None = Field(None, description="Only with multimask.")
    lr: LrAnswer | None = Field(None, description="Only with lr_mask.")


class AdaptersAnswer(BaseModel):
    name: str
    sha256: str


SEGMENT_ANSWER_EXAMPLE: dict[str, Any] = {
    "model": "lite_medsam",
    "adapters": NO_ADAPTERS,
    "warnings": [],
    "results": [
        {
            "id": None,
            "mask": {"size": [256, 256], "counts": "PPYo0U1kN0…"},
            "view": {"x": 896, "y": 3072, "width": 1280, "height": 1280, "mpp": 2.0, "size": [256, 256]},
            "bbox": [1196, 3392, 1856, 4027],
            "area_um2": 42873.5,
            "predicted_iou": 0.94,
            "touches_edge": False,
            "refine": "q83vEjRWeJA…",
            "cache": {"hr": "l1", "lr": None},
            "adapters": NO_ADAPTERS,
        }
    ],
}


class SegmentAnswerModel(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [SEGMENT_ANSWER_EXAMPLE]})

    model: str
    adapters: AdaptersAnswer | Literal["none"] = Field(
        description="Those that were asked for; an answer may be drawn by others that know its tissue."
    )
    warnings: list[str]
    results: list[ResultAnswer]
