"""The command line: python -m minidiff demo | train | sample | edit | eval | pack | course | parity | bench."""

import argparse
import errno
import sys

from .commands import bench, course, demo, edit, evaluate, pack, parity, sample, train


def main(argv: list[str] | None = None) -> int:
    """Run one command. What the user got wrong is told in one line, with exit status 2; a bug keeps its traceback."""
    parser = argparse.ArgumentParser("minidiff", description="Diffusion models, built by hand.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for room in (demo, train, sample, edit, evaluate, pack, course, parity, bench):
        command = commands.add_parser(room.NAME, help=room.HELP, description=room.__doc__, formatter_class=Formatter)
        room.arguments(command)
        command.set_defaults(run=room.run)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"minidiff {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"minidiff {args.command}: the disk is full, {error.filename} was not written, what was there is whole: "
              "make room, and go on; train goes on with --resume", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print(f"\nminidiff {args.command}: stopped", file=sys.stderr)
        return 130
    return 0


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows defaults and keeps the layout of our descriptions."""


if __name__ == "__main__":
    sys.exit(main())
