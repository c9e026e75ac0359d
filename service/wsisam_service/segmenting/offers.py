"""What an executor offers, as far as planning and answering need it, and what an answer should warn of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wsisam_model.config import ModelConfig, model_config
from wsisam_service.errors import UnknownModel
from wsisam_service.jobs import DEFAULT_ADAPTERS, NO_ADAPTERS, Executor


@dataclass(frozen=True, slots=True)
class AdaptersOffer:
    """`prompts` are the kinds (box, points, mask) that the adapters were trained for, beyond the base's own."""

    name: str
    sha256: str
    prompts: frozenset[str]

    @property
    def guess_sizes(self) -> bool:
        """Whether they turn clicks into a box, of a size that is guessed (`wsisam_model.point_box`)."""
        return "points" in self.prompts


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model that the executor runs. `adapters` is None where it has the frozen SAM only; `own` are further ones, for
    the tissue that each was trained on.
    """

    config: ModelConfig
    key_prefix: str
    adapters: AdaptersOffer | None
    own: tuple[AdaptersOffer, ...] = ()

    def adapters_for(self, wanted: str) -> AdaptersOffer | None:
        """The adapters that a request means, None for the frozen SAM; "default" are those for all tissue, in whose
        place others may draw. Raises `UnknownModel`.
        """
        return self.may_draw(wanted)[0]

    def may_draw(self, wanted: str) -> list[AdaptersOffer | None]:
        """Those among which a view's look decides where a request wants `wanted`. Raises `UnknownModel`."""
        if wanted == NO_ADAPTERS:
            return [None]
        if wanted == DEFAULT_ADAPTERS:
            return [self.adapters, *self.own]
        named: list[AdaptersOffer | None] = [one for one in (self.adapters, *self.own) if one and one.name == wanted]
        if not named:
            raise UnknownModel(f"adapters are {DEFAULT_ADAPTERS!r}, {NO_ADAPTERS!r} or a name that /v1/info gives")
        return named


async def model_offer(executor: Executor, name: str | None) -> ModelOffer:
    """The model called `name`, or the default one, which comes first. Raises `UnknownModel`."""
    models: list[Mapping[str, Any]] = (await executor.info())["models"]
    for facts in models:
        if name is None or facts["name"] == name:
            own = [_adapters(one) for one in facts.get("own_adapters", ())]
            adapters = None if facts["adapters"] is None else _adapters(facts["adapters"])
            return ModelOffer(model_config(facts["name"]), facts["key_prefix"], adapters, tuple(own))
    raise UnknownModel(f"no such model here; there are {', '.join(facts['name'] for facts in models)}")


def prompt_warnings(offer: ModelOffer, adapters: AdaptersOffer | None, kinds: Iterable[str]) -> list[str]:
    """One warning for prompt kinds that neither the base nor the adapters were trained for."""
    trained = offer.config.trained_prompts | (adapters.prompts if adapters else frozenset())
    untrained = sorted(set(kinds) - trained)
    if not untrained:
        return []
    return [
        f"{offer.config.name} was trained for {' and '.join(sorted(trained))} prompts; "
        f"answers to {' and '.join(untrained)} are not to be relied on."
    ]


def option_warnings(offer: ModelOffer, adapters: AdaptersOffer | None, *, multimask: bool, lr_mask: bool) -> list[str]:
    """Options that were asked for and bring nothing here."""
    warnings = []
    if multimask and not offer.config.multimask:
        warnings.append(f"multimask is of no use with {offer.config.name}: only its first mask was trained.")
    if lr_mask and adapters is None:
        warnings.append("There is no lr_mask without adapters: the frozen SAM looks at one view only.")
    return warnings


def _adapters(facts: Mapping[str, Any]) -> AdaptersOffer:
    return AdaptersOffer(facts["name"], facts["sha256"], frozenset(facts["trained_prompts"]))
