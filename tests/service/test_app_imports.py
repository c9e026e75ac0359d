"""The gateway runs without torch."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_application_and_the_command_line_imports_no_torch() -> None:
    code = (
        "import sys, wsisam_service.app, wsisam_service.commands.command_line;"
        "print([m for m in ('torch', 'openvino', 'onnx', 'segment_anything') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_of_the_model_the_application_imports_what_the_architecture_names() -> None:
    code = "import sys, wsisam_service.app; print(*(m for m in sys.modules if m.startswith('wsisam_model.')))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    named = {"config", "errors", "prompts", "point_box", "quality"}
    assert set(answer.stdout.split()) == {f"wsisam_model.{module}" for module in named}
