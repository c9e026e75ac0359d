"""The command `wsisam`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. What the user got wrong is one line on stderr and 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # help and names of slides hold what an ASCII locale cannot show
    try:
        from wsisam_service.commands.command_line import run  # takes a second, in which Ctrl-C ends quietly too

        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
