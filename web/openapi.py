"""Writes web/openapi.json: the part of the service's OpenAPI that the page uses, from which its types are generated.

`--check` writes nothing and exits with 1 where the file is not current.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, cast

from wsisam_service.app import create_app
from wsisam_service.jobs import Executor
from wsisam_service.settings import Settings
from wsisam_service.slides.catalogue import Catalogue

FILE = Path(__file__).with_name("openapi.json")
PATHS = {
    "/v1/info": "get",
    "/v1/slides": "get",
    "/v1/slides/{slide_id}": "get",
    "/v1/slides/{slide_id}/segment": "post",
    "/v1/slides/{slide_id}/prewarm": "post",
}
"""Method of each path that the page calls and reads JSON from."""


def used_part() -> dict[str, Any]:
    """Those paths, and the schemas that they lead to."""
    whole = create_app(Settings(), Catalogue(()), cast(Executor, None)).openapi()
    paths = {path: {method: whole["paths"][path][method]} for path, method in PATHS.items()}
    schemas: dict[str, Any] = {}
    waiting = _references(paths)
    while waiting:
        name = waiting.pop()
        if name not in schemas:
            schemas[name] = whole["components"]["schemas"][name]
            waiting |= _references(schemas[name])
    info = {"title": whole["info"]["title"], "version": whole["info"]["version"]}
    return {"openapi": whole["openapi"], "info": info, "paths": paths, "components": {"schemas": schemas}}


def _references(part: object) -> set[str]:
    return set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(part)))


def main() -> int:
    text = json.dumps(used_part(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if "--check" in sys.argv:
        return int(not FILE.is_file() or FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
