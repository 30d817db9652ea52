"""One picture.

    YOUCAM_API_KEY=... python examples/script.py selfie.jpg smiling.jpg

Without a key, start `perfect-async sandbox --port 8787` in another terminal and put
`YOUCAM_API_KEY=any YOUCAM_BASE_URL=http://127.0.0.1:8787` in front.
"""

import asyncio
import sys

from perfect_async import Client, PerfectError, Smile


async def main(source: str, target: str) -> int:
    try:
        async with Client() as client:
            result = await client.run(Smile(source, expression="closed_mouth_smile"))
            for path in await result.save(target):
                print(path)
    except PerfectError as error:
        # It says what happened, whether units are at stake, and what to do next.
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004 - the program, a picture and a path
        sys.exit("usage: script.py PICTURE TARGET")
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2])))
