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
