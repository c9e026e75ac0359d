"""Everything that decides how a training goes, in one place; it is written beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

Branches = Literal["hr", "lr", "both"]

_FURTHER: dict[str, Any] = {"branches": "hr", "steps": 240, "samples_per_step": 4, "learning_rate": 3e-4, "kept": 0.75}
"""What twenty objects are best learned with by adapters that know others already (docs/TRAINING.md)."""
_KINDS: dict[type, str] = {int: "a whole number", float: "a number"}
_LEAST = {"steps": 0, "samples_per_step": 1, "prompts_per_sample": 1, "warmup": 0, "seed": 0, "copies": 0}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Defaults are what docs/TRAINING.md found best. Rates, shares and chances are between 0 and 1; ValueError names
    what is not as it should be.
    """

    steps: int = 1200
    samples_per_step: int = 2
    prompts_per_sample: int = 2
    learning_rate: float = 1e-3
    lr_branch_rate: float = 1e-3
    """Learning rate of the LR branch's tensors."""
    prompt_rate: float = 2e-4
    """Learning rate of the prompt encoder's vectors that are trained along; 0 leaves them frozen."""
    warmup: int = 20
    clip: float = 5.0
    """Largest norm of the gradient."""
    average: float = 0.99
    """What is saved is the running mean of the weights; this much of it stays at each step. 0 saves the last ones."""
    shrink: float = 1.0
    """The HR token's part of the mask is saved at this share of what was learned (docs/TRAINING.md says why)."""
    lr_shrink: float = 1.0
    """The LR token's part likewise."""
    kept: float = 1.0
    """What is saved lies this part of the way from where training started to where it ended. A small part keeps a set
    that is trained further on few objects from getting worse on everything else (docs/TRAINING.md)."""
    seed: int = 0
    copies: int = 0
    """How many changed copies of each sample there are beside it: turned, mirrored and stained otherwise."""

    branches: Branches = "both"
    """Which branch learns; with "lr" the HR set given to start from stays as it is."""
    hr_dropout: float = 0.1
    """Chance that a prompt is answered without the HR token, so that the LR token has to know something."""
    lr_dropout: float = 0.3
    """Chance that a prompt is answered without the LR view, so that HR alone keeps working."""

    boxes: float = 0.4
    """Share of box prompts; the rest are points."""
    box_noise: float = 0.25
    """Boxes are noisy by up to this, uniformly, but for the tight ones."""
    tight: float = 0.2
    """Share of the boxes that are tight."""
    corrected: float = 0.2
    """Share of the point prompts whose last click is put where the answer to the others was wrong."""
    whole: float = 0.0
    """Share of the samples whose loss is over the whole view instead of a window around the object."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "branches":
                right, wanted = value in get_args(Branches), f"one of {', '.join(get_args(Branches))}"
            elif name in _LEAST:
                right, wanted = value >= _LEAST[name], f"at least {_LEAST[name]}"
            elif name == "clip":
                right, wanted = value > 0, "above 0"
            else:
                right, wanted = 0 <= value <= 1, "between 0 and 1"
            if not right:  # NaN is never right
                raise ValueError(f"{name} is {wanted}, not {value}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_settings(cls, settings: list[str], *, further: bool = False) -> Self:
        """The default recipe, or the one to go `further` with from trained adapters on few objects, with `NAME=VALUE`
        changes. ValueError names a setting that there is not, or that cannot be what it is set to.
        """
        types = {field.name: type(getattr(cls(), field.name)) for field in fields(cls)}
        changes = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in types:
                raise ValueError(f"a recipe has no {name!r}; it has {', '.join(types)}")
            try:
                changes[name] = types[name](value)
            except ValueError as error:
                raise ValueError(f"{name} is {_KINDS[types[name]]}, not {value!r}") from error
        return replace(cls(), **(_FURTHER | changes if further else changes))
