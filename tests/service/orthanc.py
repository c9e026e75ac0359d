"""A real Orthanc with its DICOMweb and whole-slide plugins, on loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from processes import Server, free_port

PLUGINS = Path("/usr/share/orthanc/plugins")


class Orthanc(Server):
    """Keeps its files in `folder`; skips the test where the packages orthanc and orthanc-dicomweb are missing."""

    def __init__(self, folder: Path, **configuration: Any) -> None:
        program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
        plugins = [PLUGINS / "libOrthancDicomWeb.so", PLUGINS / "libOrthancWSI.so"]
        if not Path(program).exists() or not plugins[0].exists():
            pytest.skip("orthanc with orthanc-dicomweb is not installed")
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(plugin) for plugin in plugins if plugin.exists()],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **configuration,
        }
        file = folder / "orthanc.json"
        file.write_text(json.dumps(settings))
        super().__init__([program, str(file)], folder / "orthanc.log")
        self.await_listening()

    @property
    def dicomweb(self) -> str:
        """Its DICOMweb service, without a last slash."""
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def restart(self) -> None:
        """A new process over the same files, where the old one has ended."""
        self.start()
        self.await_listening()
