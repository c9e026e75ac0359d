"""The command line: what a user gets wrong is one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from stand_ins import NumpyExecutor

from wsisam_model.registry import SHIPPED_WEIGHTS
from wsisam_service import assembly, cli


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run with the numpy stand-in in place of a model."""
    monkeypatch.setattr(assembly, "load_backend", lambda settings: SimpleNamespace(warnings=()))
    monkeypatch.setattr(assembly, "build_executor", lambda settings, backend: NumpyExecutor())
    monkeypatch.delenv("WSISAM_SLIDES", raising=False)


@pytest.fixture
def slide(slides: Path) -> str:
    return str(slides / "tissue.tif")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["serve", "--slides", "nowhere"],
        ["serve", "--slides", "x", "--host", "0.0.0.0"],
        ["serve", "--slides", "x", "--port", "seven"],
        ["serve", "--slides", "x", "--store", "floppy"],
        ["serve", "--slides", "x", "--config", "nowhere.toml"],
        ["info", "nowhere.svs"],
        ["info", "{broken}"],
        ["info", "{slide}", "--model", "sam9"],
        ["segment", "{slide}"],
        ["segment", "nowhere.svs", "--box", "1,2,3,4"],
        ["segment", "{slide}", "--box", "1,2,3"],
        ["segment", "{slide}", "--points", "1,2"],
        ["segment", "{slide}", "--box", "1,2,30,40", "--mpp", "1000"],
        ["segment", "{slide}", "--prompts", "nowhere.geojson"],
        ["segment", "{slide}", "--box", "1,2,30,40", "-o", "nowhere/out.geojson"],
        ["segment", "{slide}", "--box", "1,2,30,40", "--url", "http://127.0.0.1:1"],
        ["segment", "{slide}", "--box", "1,2,30,40", "--url", "nonsense"],
        ["segment", "{slide}", "--box", "1,2,30,40", "--url", "http://h:x"],
        ["adapters", "a", "b", "c"],
        ["adapters", "nowhere.safetensors"],
        ["adapters", "-o", "nowhere/out.safetensors", "--data", "x", "--licence", "x"],
        ["parity", "nowhere.npz"],
        ["parity", "{broken}"],
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(
    arguments: list[str], slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"slide": slides / "tissue.tif", "broken": slides / "broken.svs"}
    code = exit_code([argument.format(**places) for argument in arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert error.strip()
    assert error.strip().count("\n") == 0, error


@pytest.mark.parametrize("flag", ["--seed", "--max-objects", "--clicks"])
def test_a_number_below_zero_is_told_by_its_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["evaluate", "--data", "x", "-o", "y", flag, "-1"]) == 2
    assert f"argument {flag}: '-1' is no whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flag", "values"),
    [
        (["segment", "x", "--box", "1,2,30,40"], "--mpp", ("nan", "inf", "x")),
        (["segment", "x", "--box", "1,2,30,40"], "--simplify", ("nan", "inf")),
        (["train", "--data", "x", "-o", "y"], "--held-fraction", ("nan", "2", "-0.1")),
        (["train", "--data", "x", "-o", "y"], "--min-area", ("nan",)),
        (["precompute", "x"], "--mpp", ("0", "-1", "nan", "inf", "1000")),
    ],
)
def test_what_is_no_measure_is_told_by_its_flag(
    command: list[str], flag: str, values: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        server = () if command[0] == "train" else ("--url", "http://127.0.0.1:1")
        assert exit_code([*command, *server, flag, value]) == 2
        assert flag in capsys.readouterr().err, value


@pytest.mark.parametrize("arguments", [["info"], ["segment", "--box", "600,400,760,520"]])
def test_output_that_cannot_be_written_is_one_line_and_exit_code_2(
    arguments: list[str], slide: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([*arguments, slide]) == 2
    assert capsys.readouterr().err == "wsisam: cannot write: No space left on device\n"


def test_ctrl_c_while_modules_are_loaded_ends_quietly() -> None:
    program = """
import sys
from wsisam_service.cli import main
class Interrupted:
    def find_spec(self, name, *_):
        if name.startswith("wsisam_service."):
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
sys.exit(main(["info", "x"]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_terminal_of_ascii_alone_is_told_what_it_can_show() -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    command = [sys.executable, "-m", "wsisam_service.cli", "segment", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ascii_alone)
    assert (told.returncode, told.stderr) == (0, "")
    assert "?m per view pixel" in told.stdout


@pytest.mark.parametrize("command", [[], ["serve"], ["segment"], ["info"], ["parity"], ["adapters"]])
def test_help_is_readable(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert "wsisam" in capsys.readouterr().out


def test_info_tells_what_would_be_served(slide: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", slide]) == 0
    told = capsys.readouterr().out
    assert "1536 x 1024 px" in told
    assert "0.5 µm" in told
    assert "fingerprint" in told


def test_segment_writes_a_collection_that_carries_ids_and_classes_over(
    slide: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "boxes.geojson", tmp_path / "out.geojson"
    tumor = {"name": "Tumor", "color": [200, 0, 0]}
    prompts.write_text(
        json.dumps([box_feature(600, 400, tumor), box_feature(300, 200, None), box_feature(9e5, 0, None)])
    )
    assert cli.main(["segment", slide, "--prompts", str(prompts), "-o", str(out)]) == 0
    collection = json.loads(out.read_text())
    assert collection["type"] == "FeatureCollection"
    assert [f["properties"].get("classification") for f in collection["features"]] == [tumor, None]
    assert "900000" in capsys.readouterr().err


def test_segment_writes_to_standard_output(slide: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["segment", slide, "--points", "700,500,1 900,500,0"]) == 0
    assert len(json.loads(capfdbinary.readouterr().out)["features"]) == 1


def test_segment_tells_what_the_engine_warns_of(
    slide: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assembly, "load_backend", lambda settings: SimpleNamespace(warnings=["it is slower today"]))
    assert cli.main(["segment", slide, "--box", "600,400,760,520"]) == 0
    assert capsys.readouterr().err.splitlines() == ["wsisam: warning: it is slower today"]


def test_many_prompts_go_in_several_requests(slide: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "boxes.geojson", tmp_path / "out.geojson"
    prompts.write_text(json.dumps([box_feature(100 + 3 * i, 200, None) for i in range(70)]))
    assert cli.main(["segment", slide, "--prompts", str(prompts), "-o", str(out)]) == 0
    assert len(json.loads(out.read_text())["features"]) == 70


def test_adapters_written_anew_still_know_their_tissue(tmp_path: Path) -> None:
    shipped, out = SHIPPED_WEIGHTS / "lite_medsam-default.safetensors", tmp_path / "mine.safetensors"
    assert cli.main(["adapters", str(shipped), "-o", str(out), "--data", "glas", "--licence", "research"]) == 0
    before, after = (load_file(path) for path in (shipped, out))
    assert after.keys() == before.keys()
    assert after["tissue.looks"].equal(before["tissue.looks"])


def test_nothing_found_is_told_by_the_exit_code(slide: str, tmp_path: Path) -> None:
    assert cli.main(["segment", slide, "--box", "2000,2000,2100,2010", "-o", str(tmp_path / "o")]) == 1


def exit_code(arguments: list[str]) -> object:
    try:
        return cli.main(arguments)
    except SystemExit as ended:  # argparse's own way
        return ended.code


def box_feature(x: float, y: float, classification: Any) -> dict[str, Any]:
    ring = [[x, y], [x + 120, y], [x + 120, y + 90], [x, y + 90], [x, y]]
    properties = {"classification": classification} if classification else {}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "id": f"{x:.0f}", "geometry": geometry, "properties": properties}
