"""Weights registered from the extension's dialog, with the real loader behind the running service."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import httpx
import torch

from wsisam_model.checkpoints import load_base_weights, packaged_lite_medsam
from wsisam_model.config import model_config


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def register(service: Any, type_: str, name: str, url: str) -> str:
    answer = httpx.post(service.url + "/sam/weights/", json={"type": type_, "name": name, "url": url}, timeout=120)
    assert answer.status_code == 200, "any other status is shown without its reason"
    return answer.text


def test_code_in_registered_weights_is_not_run(qupath_service: Any, tmp_path: Path) -> None:
    (qupath_service.weights / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / "was here")))
    assert register(qupath_service, "vit_b", "mine", "evil.pth").startswith("Not registered: ")
    assert not os.listdir(tmp_path)


def test_weights_of_another_model_are_refused_with_the_reason(qupath_service: Any) -> None:
    (qupath_service.weights / "lite.pth").write_bytes(packaged_lite_medsam().read_bytes())
    answer = register(qupath_service, "vit_h", "mine", "lite.pth")
    assert answer.startswith("Not registered: lite.pth")


def test_registered_weights_are_loaded_and_offered(qupath_service: Any) -> None:
    """MobileSAM is LiteMedSAM's network on larger pictures, but for two convolutions at the start."""
    base = load_base_weights(packaged_lite_medsam(), model_config("lite_medsam"))
    parts = ("image_encoder", "prompt_encoder", "mask_decoder")
    state = {f"{part}.{key}": tensor for part in parts for key, tensor in getattr(base, part).items()}
    torch.manual_seed(0)
    state["image_encoder.patch_embed.seq.0.c.weight"] = torch.randn(32, 3, 3, 3)
    state["image_encoder.patch_embed.seq.2.c.weight"] = torch.randn(64, 32, 3, 3)
    torch.save(state, qupath_service.weights / "mobile.pt")
    answer = register(qupath_service, "vit_t", "ours", "mobile.pt")
    assert answer == "Registered: ours now answers for vit_t, until the server restarts."
    (entry,) = httpx.get(qupath_service.url + "/sam/weights/", params={"type": "vit_t"}).json()
    assert entry == {"type": "vit_t", "name": "ours", "url": "wsi-sam:vit_tiny"}
    assert httpx.get(qupath_service.url + "/v1/info").json()["models"][1]["name"] == "vit_tiny"
