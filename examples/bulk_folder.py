"""Every picture in a folder, through one batch.

    YOUCAM_API_KEY=... python examples/bulk_folder.py photos/ out/

Exit status: 0 all done, 1 some failed, 2 nothing to do or wrong settings. A second run buys
everything again: perfect_async/_journal/README.md shows how a journal prevents that.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from perfect_async import Client, ConfigurationError, Done, Failed, PerfectError, Smile

SUFFIXES = {".jpg", ".jpeg", ".png", ".heic"}


async def main(pictures: list[Path], out: Path) -> int:
    failed = 0
    # A list has a length, so `progress` knows the total and can estimate the time that is left. For
    # more pictures than fit into a list, pass a generator: it is read about 90 jobs ahead.
    jobs = [Smile(picture) for picture in pictures]
    async with Client() as client, client.batch(jobs) as batch:
        async for outcome in batch:
            match outcome:
                case Done(job, result):
                    try:
                        await result.save(out)
                    except (PerfectError, OSError) as error:
                        # The picture is paid for: `save` may be called again, at no charge.
                        failed += 1
                        print(f"{job.source!s} is done and not saved: {error}", file=sys.stderr)
                case Failed(job, error):
                    failed += 1
                    print(f"{job.source!s}: {error.message}\n  {error.hint}", file=sys.stderr)
            now = batch.progress
            left = "" if now.eta is None else f", about {now.eta:.0f} s left"
            print(f"{now.done} done, {now.failed} failed of {now.total}{left}", file=sys.stderr)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make every portrait in a folder smile.")
    parser.add_argument("photos", type=Path, help="a folder with portraits")
    parser.add_argument("out", type=Path, help="where the results go; made where it is missing")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    found = sorted(path for path in given.photos.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        print(f"no pictures in {given.photos}", file=sys.stderr)
        sys.exit(2)
    # Without this, `save` would take a name such as `a.jpg` for that of a file.
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        sys.exit(asyncio.run(main(found, given.out)))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
