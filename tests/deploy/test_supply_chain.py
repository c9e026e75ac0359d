"""What the images install is pinned with hashes, complete, and from nowhere in particular; its licences are listed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = {"gateway": "gateway,pacs", "worker": "worker"}
ENTRY = re.compile(r"([A-Za-z0-9._-]+)==\S+( ; [^\\]+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+")


def lock_of(image: str) -> str:
    return (REPOSITORY / "docker" / f"{image}.lock").read_text()


def locked(image: str) -> set[str]:
    return {canonicalize_name(found[1]) for found in ENTRY.finditer(lock_of(image))}


@pytest.mark.parametrize("image", IMAGES)
def test_every_line_of_a_lock_is_a_version_with_hashes(image: str) -> None:
    assert ENTRY.sub("", lock_of(image)) == ""
    assert "://" not in lock_of(image)  # whoever builds chooses where packages come from; hashes say which they are


@pytest.mark.parametrize("image", IMAGES)
def test_a_lock_has_what_the_project_asks_for(image: str) -> None:
    """Fails where a dependency was added and `make lock` was not run."""
    command = [sys.executable, "docker/requirements.py", IMAGES[image]]
    asked = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()
    versions = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", lock_of(image), re.MULTILINE))
    pinned = {canonicalize_name(name): version for name, version in versions.items()}
    for line in asked:
        wanted = Requirement(line)
        assert pinned.get(canonicalize_name(wanted.name), "") in wanted.specifier, line


def test_the_dockerfile_installs_from_the_locks_by_hash() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    for image in IMAGES:
        assert f"COPY docker/{image}.lock ./" in text
        assert f"install --require-hashes --requirement {image}.lock" in text


def test_torch_is_in_the_workers_lock_alone() -> None:
    assert "torch" in locked("worker")
    assert "torch" not in locked("gateway")


def test_the_licence_of_every_package_is_listed() -> None:
    """Fails where a lock has changed and `make licenses` was not run."""
    text = (REPOSITORY / "docs/LICENSES.md").read_text()
    listed = {canonicalize_name(name) for name in re.findall(r"^\| ([A-Za-z0-9._-]+) \|", text, re.MULTILINE)}
    assert locked("gateway") | locked("worker") <= listed
    assert "not said" not in text
