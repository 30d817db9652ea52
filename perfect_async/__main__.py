"""Runs `perfect-async` for `python -m perfect_async`."""

import sys

from perfect_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
