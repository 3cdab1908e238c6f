"""Is this really it? Every block and network here beside that of diffusers or transformers, random weights in all of them.

  python -m minidiff parity
  python -m minidiff parity --full     and then load Stable Diffusion 1.5 at full size, in a race with diffusers

The two libraries are oracles of the tests and no part of minidiff, so the table lives with the tests, in tests/parity/: this
command needs a checkout of the repository and what its requirements.txt installs.
"""

import importlib.util
import sys
from pathlib import Path

NAME, HELP = "parity", "compare every part with diffusers and transformers"
TESTS = Path(__file__).parents[2] / "tests" / "parity"


def arguments(parser):
    parser.add_argument("--full", action="store_true", help="load the full size too: 2.2 GB of disk, 8 GB of memory, minutes")


def run(args):
    missing = [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} are what minidiff is compared with: pip install -r requirements.txt")
    if not TESTS.is_dir():
        raise FileNotFoundError(f"{TESTS} does not exist: the comparison is part of the repository, run it in a checkout")
    sys.path.insert(0, str(TESTS))
    import full_size  # both from tests/parity
    import table

    if not table.main() or (args.full and not full_size.main()):
        raise ValueError("minidiff does not come up to its original everywhere: see the table above")
