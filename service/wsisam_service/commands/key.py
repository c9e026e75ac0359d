"""`wsisam key new`: an API key for somebody, shown once; its hash goes into the file that `serve --keys` reads."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from wsisam_service.access.identity import Role
from wsisam_service.access.keys import KeyFileError, StoredKey, append_key, hash_of, key_block, new_key, read_keys
from wsisam_service.commands.flags import UsageError, add_settings, settings_of

MAX_DAYS = 36_500


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("key", help="make API keys", description=__doc__)
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=type(parser))
    new = actions.add_parser("new", help="make a key and show it", description=__doc__)
    new.add_argument("--name", required=True, help="who it is for: letters, digits and . _ @ -; the audit trail has it")
    new.add_argument("--role", required=True, choices=[role.value for role in Role], help="what they may do")
    new.add_argument("--roots", metavar="NAME,…", help="names of the slide roots that they see [all]")
    new.add_argument("--days", type=int, help="days until it ends [never]")
    new.add_argument("--print", action="store_true", help="print what belongs into the file, the key on standard error")
    add_settings(new, ("keys",))
    new.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    path = settings_of(options).keys
    if path is None and not options.print:
        raise UsageError("no file to keep the key's hash in: give --keys FILE, set WSISAM_KEYS, or give --print")
    roots = None if options.roots is None else tuple(filter(None, map(str.strip, options.roots.split(","))))
    if options.days is not None and not 0 < options.days <= MAX_DAYS:
        raise UsageError(f"--days is from 1 to {MAX_DAYS}")
    expires = None if options.days is None else datetime.now(UTC) + timedelta(days=options.days)
    key = new_key()
    try:
        stored = StoredKey(name=options.name, role=options.role, roots=roots, expires=expires, sha256=hash_of(key))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{first['loc'][0]}: {first['msg']}") from None
    if path is None or options.print:
        print(f"\n{key_block(stored)}", end="")
        print(key, file=sys.stderr)
        return 0
    try:
        if path.exists():
            read_keys(path)  # nothing is appended to what is not a file of keys
        append_key(path, stored)
    except KeyFileError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    print(key)
    print(f"for {stored.name}, {stored.role}; this is the only time that it is shown", file=sys.stderr)
    return 0
