"""What the vendor and the client tell about themselves: templates, prices, how things stand.

Frozen values; seconds, units and counts only.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class Template:
    """A style for `Avatar`: `id` goes into `template_id`; `thumb` is a safe https URL or None.

    (contract: Templates)
    """

    id: str
    title: str
    category: str
    thumb: str | None


@attrs.frozen
class Estimate:
    """What so many `jobs` would cost: `units` in all and `by_feature`.

    `documented` is True where the vendor's price list did not name every feature and the documented
    prices (contract: Expiry and charging) filled in.
    """

    jobs: int
    units: float
    by_feature: Mapping[str, float]
    documented: bool


@attrs.frozen
class Spending:
    """Units since the client opened, by the prices of the features.

    `charged`: for tasks that were created, or taken over from a journal. `returned`: by the
    engine's failures. `at_stake`: charged or perhaps charged with nothing to show: lost, abandoned,
    in doubt. What was delivered for is `charged - returned - at_stake` as long as nothing runs and
    no creation was in doubt.
    """

    charged: float
    returned: float
    at_stake: float


@attrs.frozen
class Statistics:
    """How the client is; counts since it opened unless said otherwise, times in seconds.

    `waiting`, `preparing` (registering or uploading), `ready`, `running`: jobs now.
    `requests_in_window`: requests that occupy the limit's window now; `window_limit`: what is
    assumed to be allowed in it (below `Limits.requests` after signs of foreign use). `requests`:
    sent, by kind; `refused`: 429s; `tries`: polls sent again inside a lease; `late`: polls that
    left after their slot, however little. `cycle`: seconds between two polls of one task;
    `patience`: seconds until a silent poll is asked beside. `units`: what was spent. `blocked`: how
    often the event loop woke more than half a second late, with or without a poll to send: other
    code had blocked it, which `Client(isolated=True)` makes harmless.
    """

    waiting: int
    preparing: int
    ready: int
    running: int
    done: int
    failed: int
    requests_in_window: int
    window_limit: int
    requests: Mapping[str, int]
    refused: int
    tries: int
    late: int
    cycle: float
    patience: float
    units: Spending
    blocked: int = 0
