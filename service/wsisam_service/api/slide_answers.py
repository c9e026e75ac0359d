"""What the catalogue and /v1/info answer, described for clients that generate their types from the OpenAPI."""

from __future__ import annotations

from pydantic import BaseModel, Field

from wsisam_service.api.schemas import AdaptersAnswer, ProblemAnswer


class SlideAnswer(BaseModel):
    id: str
    name: str = Field(description="The file's name without folders; of a DICOM series an opaque one.")
    width: int = Field(description="Level-0 pixels.")
    height: int = Field(description="Level-0 pixels.")
    mpp: float | None = Field(description="µm per level-0 pixel as the file says, believable or not.")
    vendor: str | None
    fingerprint: str


class UnreadableAnswer(BaseModel):
    id: str
    name: str
    problem: ProblemAnswer


class SlidesAnswer(BaseModel):
    slides: list[SlideAnswer]
    unreadable: list[UnreadableAnswer]
    next: str | None = Field(description="Cursor of the next page.")


class PurgeAnswer(BaseModel):
    views: int = Field(description="Embeddings forgotten, in the tier that had most of them.")


class LevelAnswer(BaseModel):
    width: int
    height: int
    downsample: float


class BoundsAnswer(BaseModel):
    x: float
    y: float
    width: float
    height: float


class SlideDetailsAnswer(SlideAnswer):
    levels: list[LevelAnswer]
    bounds: BoundsAnswer | None
    objective_power: float | None
    origin_mm: tuple[float, float] | None = Field(
        description="Where level 0 begins in the slide's own coordinates (DICOM's total pixel matrix origin)."
    )
    warnings: list[str]


class AdaptersInfoAnswer(AdaptersAnswer):
    licence: str | None = None


class OwnAdaptersAnswer(AdaptersInfoAnswer):
    knows_tissue: bool = Field(description="Whether views like those of their training are recognised.")


class ModelAnswer(BaseModel):
    name: str
    image_size: int
    trained_prompts: list[str]
    multimask: bool
    default_mpp: float
    point_mpp: float
    adapters: AdaptersInfoAnswer | None
    own_adapters: list[OwnAdaptersAnswer] = Field(
        [], description="Further ones, each for the tissue it was trained on, or by name."
    )


class LimitsAnswer(BaseModel):
    max_prompts: int
    max_body_bytes: int
    max_image_px: int
    request_timeout_s: float
    refine_ttl_s: int
    mpp: tuple[float, float] = Field(description="Least and most µm per view pixel that a request may ask for.")
    slide_mpp: tuple[float, float] = Field(description="Least and most µm per level-0 pixel that are believed.")


class InfoAnswer(BaseModel):
    version: str
    models: list[ModelAnswer] = Field(description="The default model first.")
    device: str
    precision: str
    engine: str
    warnings: list[str]
    pictures: str = Field(description="What is different where no slide lies behind the pixels.")
    limits: LimitsAnswer
