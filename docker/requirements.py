"""Prints the requirements of extras of pyproject.toml, so that an image installs those alone.

    requirements.py worker,fast

`pip install .[gateway]` would bring everything, since the package without extras means gateway and worker.
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]


def requirements(extra: str) -> list[str]:
    """Those of `extra`, with the extras that it names in place of the names."""
    found = []
    for line in EXTRAS[extra]:
        named = re.fullmatch(r"wsisam\[([\w,]+)\]", line)
        found += [part for name in named[1].split(",") for part in requirements(name)] if named else [line]
    return found


print("\n".join(dict.fromkeys(line for extra in sys.argv[1].split(",") for line in requirements(extra))))
