"""The random adapters of a file of golden vectors, as a file that `--adapters` takes.

    python bench/golden_adapters.py GOLDEN.npz random.safetensors

For measuring what the dual path costs where no adapters with an LR branch are at hand: the masks mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsisam_model.checkpoints import load_base_weights, save_adapters
from wsisam_model.config import model_config
from wsisam_model.golden import Golden
from wsisam_model.registry import base_weights_path

MODEL = "lite_medsam"
PREFIXES = {"hr": "adapter_high/", "lr": "adapter_low/"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    config = model_config(MODEL)
    base = load_base_weights(base_weights_path(config, None), config)
    golden = Golden(options.golden)
    state = {
        f"{branch}.{name}": tensor
        for branch, prefix in PREFIXES.items()
        for name, tensor in golden.state(prefix).items()
    }
    save_adapters(
        options.output, state, model=MODEL, base_sha256=base.sha256, data="nothing: random numbers", licence="any use"
    )


if __name__ == "__main__":
    main()
