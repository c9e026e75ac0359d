"""Which model answers for the names in the extension's model box, and what its weights list says about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypedDict

from wsisam_service.errors import NotSupported

MODEL_OF_TYPE = {"vit_t": "vit_tiny", "vit_b": "vit_b", "vit_l": "vit_l", "vit_h": "vit_h"}
URL_SCHEME = "wsi-sam:"
"""Of the entries' `url`, which the extension only echoes: no address and no path of the server."""
_UNSUPPORTED_SCHEME = "unsupported:"


class WeightsEntry(TypedDict):
    """One line of the weights list, shown as `name (url)`; the first is selected by itself."""

    type: str
    name: str
    url: str


def serving_model(type_: str, checkpoint_url: str | None, installed: Collection[str], default: str) -> str:
    """The model that answers a request of this type. Raises `NotSupported` for SAM 2, SAM 3 and names unknown here.

    A chosen entry of this server's list wins over the type; addresses of other servers say nothing.
    """
    chosen = (checkpoint_url or "").removeprefix(URL_SCHEME)
    if checkpoint_url != chosen and chosen in installed:
        return chosen
    if type_ and type_ not in MODEL_OF_TYPE:
        raise NotSupported(f"This server does not offer {type_[:64]}; choose vit_t, vit_b, vit_l or vit_h.")
    model = MODEL_OF_TYPE.get(type_, default)
    return model if model in installed else default


def weights_list(type_: str, names: Mapping[str, str], default: str) -> list[WeightsEntry]:
    """The entries for `type_`, or for every type where it is empty; never none, since QuPath would not run then.

    `names` are the installed models with what to call their weights.
    """
    if not type_:
        return [entry for known in MODEL_OF_TYPE for entry in weights_list(known, names, default)]
    if type_ not in MODEL_OF_TYPE:
        return [
            {
                "type": type_,
                "name": f"{type_[:64]} is not offered by this server",
                "url": _UNSUPPORTED_SCHEME + type_[:64],
            }
        ]
    model = MODEL_OF_TYPE[type_]
    if model in names:
        return [{"type": type_, "name": names[model], "url": URL_SCHEME + model}]
    return [
        {
            "type": type_,
            "name": f"{default} answers, as weights of {type_} are not installed",
            "url": URL_SCHEME + default,
        }
    ]
