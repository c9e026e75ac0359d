"""Which weights a model name leads to."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsisam_model import load_model
from wsisam_model.checkpoints import BaseWeights, load_base_weights, packaged_lite_medsam
from wsisam_model.config import MODELS, model_config
from wsisam_model.errors import CheckpointError, UnknownModelError
from wsisam_model.registry import PUBLISHED_NAMES, base_weights_path, choose_adapters

LITE, VIT_B = model_config("lite_medsam"), model_config("vit_b")
NO_BASE = BaseWeights("", {}, {}, {})


def brings_gnu_openmp() -> bool:
    """Whether torch's wheel has it, as those for Linux do."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    return any(any(folder.glob("libgomp*")) for folder in (package / "lib", package.with_name("torch.libs")))


def test_every_model_has_a_weights_file() -> None:
    assert PUBLISHED_NAMES.keys() == MODELS.keys()


def test_weights_come_from_the_file_the_folder_or_the_package(tmp_path: Path) -> None:
    checkpoint = tmp_path / "sam_vit_b_01ec64.pth"
    checkpoint.touch()
    assert base_weights_path(VIT_B, tmp_path) == checkpoint
    assert base_weights_path(VIT_B, tmp_path / "mine.pth") == tmp_path / "mine.pth"
    assert base_weights_path(LITE, tmp_path) == packaged_lite_medsam()
    (tmp_path / "lite_medsam.pth").touch()
    assert base_weights_path(LITE, tmp_path) == tmp_path / "lite_medsam.pth"


def test_missing_weights_say_which_file_to_get(tmp_path: Path) -> None:
    for weights in (None, tmp_path):
        with pytest.raises(CheckpointError, match=r"^sam_vit_b_01ec64.pth: .* vit_b .*get this file"):
            base_weights_path(VIT_B, weights)


def test_adapters_are_none_without_a_shipped_file_and_never_random() -> None:
    assert choose_adapters("none", LITE, NO_BASE) is None
    assert choose_adapters("default", VIT_B, NO_BASE) is None


def test_the_open_adapters_were_trained_on_open_data_alone() -> None:
    base = load_base_weights(base_weights_path(LITE), LITE)
    adapters = choose_adapters("open", LITE, base)
    assert adapters is not None
    assert adapters.metadata["data"] == "breast_bcss/bcss_1008, camelyon/all"
    assert adapters.licence == "Apache-2.0 (trained on CC0 data alone)"
    with pytest.raises(CheckpointError, match=r"^vit_b-open.safetensors: cannot be read"):
        choose_adapters("open", VIT_B, NO_BASE)


def test_a_named_adapters_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^gone.safetensors: cannot be read"):
        choose_adapters(str(tmp_path / "gone.safetensors"), LITE, NO_BASE)


def test_an_unknown_model_is_an_error() -> None:
    with pytest.raises(UnknownModelError, match="no model is called 'sam3'; there are lite_medsam"):
        load_model("sam3")


@pytest.mark.skipif(not brings_gnu_openmp(), reason="torch brings no GNU OpenMP here")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, 10_000), ({"GOMP_SPINCOUNT": "5"}, 5), ({"OMP_WAIT_POLICY": "passive"}, 0)],
    ids=["by default", "as the user says", "by the user's policy"],
)
def test_torchs_threads_soon_leave_the_cores_to_openvino(given: dict[str, str], spins: int) -> None:
    """As GNU's OpenMP itself tells when torch loads it: its own default is 300,000."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = "import wsisam_model.registry"
    told = {**kept, **given, "OMP_DISPLAY_ENV": "verbose"}
    loaded = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True).stderr
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", loaded)) == {str(spins)}


def test_loading_a_model_leaves_torchs_compiler_alone() -> None:
    """Its import costs 2 s and 100 MB of a start, and some of torch's functions bring it in unasked."""
    code = (
        "import sys; from wsisam_model import load_model; load_model(engine='torch', device='cpu');"
        "print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
