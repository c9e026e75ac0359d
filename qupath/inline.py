"""Writes the shared part into every script, so that each is one file that a QuPath user can copy.

A Groovy script in QuPath does not reliably know its own folder, so it cannot load a class that lies beside it. Edit
`client.part.groovy`, run this, commit all. `--check` only says which scripts are out of date (exit status 1).
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
MARKER = "// ==== shared by all scripts: from client.part.groovy by inline.py; do not edit here ====\n"


def inlined(script: str, part: str) -> str:
    """`script` with the imports of `part` below its head comment, and the classes of `part` at its end."""
    imports, classes = part.split("\n\n/**", 1)
    head, body = script.split("*/\n", 1)
    own = body.split(MARKER)[0]
    lines = [line for line in own.splitlines(keepends=True) if not line.startswith("import ")]
    return f"{head}*/\n{imports}\n\n{''.join(lines).strip()}\n\n{MARKER}\n/**{classes}"


def main() -> int:
    part = (FOLDER / "client.part.groovy").read_text("utf-8")
    stale = []
    for path in sorted(FOLDER.glob("*.groovy")):
        if path.name == "client.part.groovy":
            continue
        old = path.read_text("utf-8")
        new = inlined(old, part)
        if new != old:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(new, "utf-8")
    print("out of date: " + ", ".join(stale) if stale else "all scripts are up to date")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
