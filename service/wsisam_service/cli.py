"""The command `wsisam`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from wsisam_model.errors import ModelError
from wsisam_service.commands import (
    adapters,
    bench,
    evaluate,
    info,
    key,
    parity,
    precompute,
    segment,
    serve,
    train,
    worker,
)
from wsisam_service.commands.flags import UsageError
from wsisam_service.errors import ServiceError
from wsisam_service.settings import SettingsError

COMMANDS = (serve, worker, key, segment, info, precompute, train, evaluate, bench, parity, adapters)
USER_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2, without the usage text, which `--help` shows."""
        self.exit(USER_ERROR, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. What the user got wrong is one line on stderr and 2."""
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
        return code
    except (UsageError, SettingsError, ServiceError, ModelError) as error:
        print(f"wsisam: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="wsisam", description="Outlines what a pathologist points at on a whole-slide image.")
    parser.add_argument("--version", action="version", version=f"wsisam {version('wsisam')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
