"""The command line with all its subcommands."""

from __future__ import annotations

import argparse
import errno
import os
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
FULL = (errno.ENOSPC, errno.EDQUOT)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2, without the usage text, which `--help` shows."""
        self.exit(USER_ERROR, f"{self.prog}: {message}\n")


def run(arguments: Sequence[str] | None) -> int:
    """See `cli.main`."""
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
        if sys.stdout is not None:  # as it is where it was closed before we were started
            sys.stdout.flush()
        return code
    except (UsageError, SettingsError, ServiceError, ModelError) as error:
        print(f"wsisam: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        _drop_output()
        return 0
    except OSError as error:
        if error.errno in FULL:
            _drop_output()
            print(f"wsisam: cannot write: {error.strerror}", file=sys.stderr)
        elif error.filename is not None:
            print(f"wsisam: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            raise
        return USER_ERROR


def _drop_output() -> None:
    """Send what could not be written nowhere; else Python tries again at its end, complains, and exits with 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="wsisam", description="Outlines what a pathologist points at on a whole-slide image.")
    parser.add_argument("--version", action="version", version=f"wsisam {version('wsisam')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
