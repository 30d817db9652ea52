"""The home directory of the tests."""

import os
import subprocess
import sys
from pathlib import Path


def test_no_test_touches_the_users_home(home: Path) -> None:
    """Neither this process nor a child finds the user's home or state folder."""
    program = "import pathlib; print(pathlib.Path.home())"
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert home == Path.home() == Path(started.stdout.decode().strip())
    assert "XDG_STATE_HOME" not in os.environ
