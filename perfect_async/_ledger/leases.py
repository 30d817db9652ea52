"""The measured lease of one key on one host, in a file beside its ledgers.

    <state folder>/<host>/<key>/lease.json

The file holds seconds and a date, its path has digests, and only its user can read it. Deleting it
is safe: the lease then counts as not measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, cast

import attrs

from perfect_async._ledger.rows import LedgerUnavailable, host_digest, key_digest
from perfect_async._value import Value
from perfect_async.models import ASSUMED_LEASE

_SHARE: Final = 0.8
"""The part of a survived gap that is used as the lease."""
_NAME: Final = "lease.json"
_LARGEST: Final = 10_000


@attrs.frozen(eq=False, repr=False)
class LeaseRecord(Value):
    """A measured lease: a task survived `survived` seconds without a poll, and `lost` lost it.

    `survived` is 0.0 if the task survived no gap, `lost` is None if no gap lost it. `refuted`: a
    task was lost within the resulting lease since then.
    """

    survived: float
    lost: float | None
    measured_at: datetime
    refuted: bool = False

    @property
    def lease(self) -> float:
        """The lease to use, in seconds: 0.8 of the survived gap, but at least 10."""
        return ASSUMED_LEASE if self.refuted else max(ASSUMED_LEASE, _SHARE * self.survived)


class LeaseFile:
    """The record of `api_key` on `base_url` in the state `folder`, by default the user's."""

    def __init__(self, base_url: str, api_key: str, folder: Path | None = None) -> None:
        self._names = host_digest(base_url), key_digest(api_key)
        self._folder = folder

    def __repr__(self) -> str:
        return f"<LeaseFile {'/'.join(self._names)}>"

    def read(self) -> LeaseRecord | None:
        """Return the measured lease; None if there is none or the file cannot be read."""
        try:
            with (self._place() / _NAME).open("rb") as file:
                return _decode(file.read(_LARGEST))
        except (OSError, LedgerUnavailable):
            return None

    def write(self, record: LeaseRecord) -> None:
        """Save `record` in place of the former one. Raises `LedgerUnavailable`."""
        from perfect_async._ledger.folder import errors_mapped  # noqa: PLC0415 - loaded late

        place = self.make_folder()
        part = place / f"{_NAME}.{secrets.token_hex(4)}.new"
        with errors_mapped(place):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
            try:
                with open(os.open(part, flags, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
                    file.write(_encode(record))
                part.replace(place / _NAME)
            except BaseException:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
                raise

    def make_folder(self) -> Path:
        """Make the folder of the file, readable for its user only. Raises `LedgerUnavailable`."""
        from perfect_async._ledger.folder import errors_mapped, make_private  # noqa: PLC0415 - late

        place = self._place()
        with errors_mapped(place):
            place.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (place.parent, place):
                folder.mkdir(mode=0o700, exist_ok=True)
                make_private(folder)
        return place

    def refute(self) -> None:
        """Record that a task was lost within the measured lease. Raises `LedgerUnavailable`."""
        record = self.read()
        if record is not None and not record.refuted:
            self.write(attrs.evolve(record, refuted=True))

    def _place(self) -> Path:
        # Loaded only when it is used, since most programs do not measure the lease.
        from perfect_async._ledger.folder import default_folder  # noqa: PLC0415 - as above

        folder = default_folder() if self._folder is None else self._folder
        return folder.joinpath(*self._names)


def _encode(record: LeaseRecord) -> bytes:
    fields = {
        "survived": record.survived,
        "lost": record.lost,
        "measured_at": record.measured_at.isoformat(),
        "refuted": record.refuted,
    }
    return json.dumps(fields).encode()


def _decode(data: bytes) -> LeaseRecord | None:
    """Return the record; None for data of another version or of a person."""
    try:
        found: object = json.loads(data)
        if not isinstance(found, dict):
            return None
        fields = cast("Mapping[str, object]", found)
        lost = fields["lost"]
        return LeaseRecord(
            _seconds(fields["survived"]),
            None if lost is None else _seconds(lost),
            datetime.fromisoformat(str(fields["measured_at"])),
            refuted=fields["refuted"] is True,
        )
    except (ValueError, KeyError, RecursionError):
        return None


def _seconds(value: object) -> float:
    # No lease is longer than a day.
    if isinstance(value, (int, float)) and 0 <= value <= 24 * 3600:
        return float(value)
    raise ValueError(value)
