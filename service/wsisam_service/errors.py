"""Typed errors of the service, and the one table that turns errors into problem documents (RFC 9457)."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

from wsisam_model.errors import ModelError, PromptError, UnknownModelError


class ServiceError(Exception):
    """Base of the service's own errors. The message is told to the client, so it names no path and no person."""

    def __init__(self, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s

    def anew(self) -> Self:
        """The same without its traceback, whose frames hold on to what they had open."""
        return type(self)(self.detail, retry_after_s=self.retry_after_s)


class UnknownSlide(ServiceError): ...


class NotFound(ServiceError): ...


class UnreadableSlide(ServiceError): ...


class NotBrightfield(ServiceError): ...


class InvalidRequest(ServiceError): ...


class EmptyPrompt(ServiceError): ...


class InvalidBox(ServiceError): ...


class InvalidNumber(ServiceError): ...


class InvalidLabel(ServiceError): ...


class NoPositivePoint(ServiceError): ...


class PromptOutsideSlide(ServiceError): ...


class TooManyPrompts(ServiceError): ...


class FrameMismatch(ServiceError): ...


class UnknownModel(ServiceError): ...


class RefineExpired(ServiceError): ...


class BodyTooLarge(ServiceError): ...


class ImageTooLarge(ServiceError): ...


class InvalidImageRequest(ServiceError): ...


class UnsupportedMediaType(ServiceError): ...


class Unauthorized(ServiceError): ...


class Forbidden(ServiceError): ...


class Overloaded(ServiceError): ...


class RateLimited(ServiceError): ...


class WorkerUnavailable(ServiceError): ...


class PacsUnavailable(ServiceError): ...


class NoDicomSource(ServiceError): ...


class OutlineWithHoles(ServiceError): ...


class Timeout(ServiceError): ...


class NotSupported(ServiceError): ...


class NotReady(ServiceError): ...


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem type: stable name under `/problems/`, HTTP status, and a title that never changes."""

    name: str
    status: int
    title: str

    def document(self, detail: str, **extra: Any) -> dict[str, Any]:
        """The RFC 9457 document of this problem."""
        return {
            "type": f"/problems/{self.name}",
            "title": self.title,
            "status": self.status,
            "detail": detail,
            **extra,
        }


PROBLEMS: dict[type[Exception], Problem] = {
    UnknownSlide: Problem("unknown-slide", 404, "No such slide"),
    NotFound: Problem("not-found", 404, "Nothing at this address"),
    UnreadableSlide: Problem("unreadable-slide", 422, "The slide cannot be read"),
    NotBrightfield: Problem("not-brightfield", 422, "The slide is not brightfield RGB"),
    InvalidRequest: Problem("invalid-request", 422, "The request does not fit the schema"),
    EmptyPrompt: Problem("empty-prompt", 422, "A prompt without box, point, mask or refine token"),
    InvalidBox: Problem("invalid-box", 422, "The box is inverted or empty"),
    InvalidNumber: Problem("invalid-number", 422, "A number is not finite or out of range"),
    InvalidLabel: Problem("invalid-label", 422, "A point's label is neither 0 nor 1"),
    NoPositivePoint: Problem("no-positive-point", 422, "Points without a positive one"),
    PromptOutsideSlide: Problem("prompt-outside-slide", 422, "The prompt lies outside the slide"),
    TooManyPrompts: Problem("too-many-prompts", 422, "Too many prompts in one request"),
    FrameMismatch: Problem("frame-mismatch", 422, "The image size fits neither the slide nor its bounds"),
    UnknownModel: Problem("unknown-model", 422, "No such model or adapters"),
    UnknownModelError: Problem("unknown-model", 422, "No such model or adapters"),
    PromptError: Problem("invalid-request", 422, "The request does not fit the schema"),
    RefineExpired: Problem("refine-expired", 410, "The refine token has expired"),
    BodyTooLarge: Problem("body-too-large", 413, "The request body is too large"),
    ImageTooLarge: Problem("image-too-large", 413, "The image has too many pixels"),
    InvalidImageRequest: Problem("invalid-image-request", 400, "The IIIF request is not understood"),
    UnsupportedMediaType: Problem("unsupported-media-type", 415, "The content type is not understood"),
    Unauthorized: Problem("unauthorized", 401, "Credentials are missing or wrong"),
    Forbidden: Problem("forbidden", 403, "Not allowed"),
    Overloaded: Problem("overloaded", 503, "Too busy"),
    RateLimited: Problem("rate-limited", 429, "Too many requests"),
    WorkerUnavailable: Problem("worker-unavailable", 502, "No worker answers"),
    PacsUnavailable: Problem("pacs-unavailable", 502, "The PACS does not answer as it should"),
    NoDicomSource: Problem("no-dicom-source", 422, "The slide has no DICOM side for this"),
    OutlineWithHoles: Problem("outline-with-holes", 422, "Annotations cannot say holes"),
    Timeout: Problem("timeout", 504, "The work took too long"),
    NotSupported: Problem("not-supported", 501, "Not offered by this server"),
    NotReady: Problem("not-ready", 503, "Not ready yet"),
}

METHOD_NOT_ALLOWED = Problem("method-not-allowed", 405, HTTPStatus.METHOD_NOT_ALLOWED.phrase)
INTERNAL = Problem("internal", 500, "A fault of the server")


def problem_of(error: Exception) -> Problem:
    """The problem of `error`, looked up by class hierarchy; `INTERNAL` for what nobody foresaw."""
    for cls in type(error).__mro__:
        if cls in PROBLEMS:
            return PROBLEMS[cls]
    return INTERNAL


def detail_of(error: Exception) -> str:
    """What a client may be told of `error`: its message where it is ours, nothing of the inside otherwise."""
    if isinstance(error, ServiceError):
        return error.detail
    if isinstance(error, ModelError) and problem_of(error) is not INTERNAL:
        return str(error)
    return "An unexpected error; the log has it under this request id."
