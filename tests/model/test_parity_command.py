"""What the parity table says of files that fit, that do not, and that are no golden vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsisam_model.errors import CheckpointError
from wsisam_model.parity import ParityRow, run_parity


def test_the_toy_vit_passes_and_a_changed_vector_is_named(shared: Path, tmp_path: Path) -> None:
    path = shared / "parity" / "vit_small_golden.npz"
    assert [row.passed for row in run_parity(path)] == [True, True]
    with np.load(path) as file:
        arrays = dict(file)
    arrays["out/embedding"] = arrays["out/embedding"] + 2e-4
    np.savez(tmp_path / "changed.npz", **arrays)
    assert [row.quantity for row in run_parity(tmp_path / "changed.npz") if not row.passed] == ["embedding"]


def test_an_error_that_is_no_number_does_not_pass() -> None:
    assert not ParityRow("A/box", "plain", "hr_final", float("nan"), 1e-3).passed


@pytest.mark.parametrize("content", [b"no zip file at all", b""])
def test_another_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.npz"):
        run_parity(tmp_path / "other.npz")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.npz"):
        run_parity(tmp_path / "gone.npz")
