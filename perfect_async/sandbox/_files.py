"""Registered files and their bytes."""

from __future__ import annotations

import base64
from typing import Literal

import attrs

from ._charges import Ledger
from ._clock import Chance
from ._features import FEATURES, text_field, whole_field
from ._http import Call, as_list, as_object, invalid, not_accepted, read_object, required
from ._presigned import Links, StorageError, no_such_key

HeaderStyle = Literal["object", "numbers", "list"]

# (contract: Input pictures) Both spellings of JPEG are taken; HEIC's type is assumed.
CONTENT_TYPES = {
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/png": "png",
    "image/heic": "heic",
}
# What every HTTP client sends; S3 signs none of it.
_ORDINARY = frozenset({"accept", "accept-encoding", "connection", "host", "user-agent"})


@attrs.define(eq=False)
class StoredFile:
    """A registration, and its bytes once they arrived."""

    file_id: str
    path: str
    name: str
    content_type: str
    size: int
    feature: str | None
    data: bytes | None = attrs.field(default=None, repr=False)
    deleted: bool = False


class Files:
    """The upload host and the registrations in front of it."""

    def __init__(
        self,
        links: Links,
        chance: Chance,
        ledger: Ledger,
        *,
        most: int,
        style: HeaderStyle,
    ) -> None:
        self._links = links
        self._chance = chance
        self._ledger = ledger
        self._most = most
        self._style: HeaderStyle = style
        self._by_id: dict[str, StoredFile] = {}
        self._by_path: dict[str, StoredFile] = {}

    def find(self, file_id: str) -> StoredFile | None:
        """The registration of this id, unless it was deleted."""
        found = self._by_id.get(file_id)
        return None if found is None or found.deleted else found

    def register(self, call: Call, feature: str | None) -> object:
        """Answer `POST /file`: every file of the call or none, in the request's order."""
        entries = as_list(read_object(call.body).get("files"))
        if not entries:
            raise required("files")
        if len(entries) > self._most:
            # How many one call may hold is open (contract: Register the file).
            raise invalid(f"files may hold at most {self._most} items.")
        checked = [self._check(entry, feature) for entry in entries]
        return {"files": [self._answer(self._add(*fields, feature)) for fields in checked]}

    def receive(self, call: Call, path: str) -> None:
        """Take the bytes of a PUT; exactly the signed headers, exactly the registered length."""
        self._links.check(call, "uploads", path)
        file = self._by_path.get(path)
        if file is None or file.deleted:
            raise no_such_key()
        length = call.headers.get("content-length")
        if length is None:
            raise StorageError(
                411,
                "MissingContentLength",
                "You must provide the Content-Length HTTP header.",
                "upload without Content-Length",
            )
        self._check_signed(call, file, length)
        if len(call.body) != file.size:
            raise StorageError(
                400,
                "IncompleteBody",
                "You did not provide the number of bytes specified by the Content-Length header.",
                f"upload of {len(call.body)} bytes announced as {length}",
            )
        file.data = call.body

    def _check_signed(self, call: Call, file: StoredFile, length: str) -> None:
        signed = {"content-type": file.content_type, "content-length": str(file.size)}
        sent = {"content-type": call.headers.get("content-type"), "content-length": length}
        if sent != signed:
            raise StorageError(
                403,
                "SignatureDoesNotMatch",
                "The signed headers differ.",
                f"upload with {sent} where {signed} was signed",
            )
        for name in call.headers:
            if name in signed or name in _ORDINARY:
                continue
            violation = f"upload with the header {name}, which was not given"
            if name.startswith("x-amz-"):
                raise StorageError(
                    403,
                    "AccessDenied",
                    "There were headers present in the request which were not signed",
                    violation,
                )
            # S3 ignores the rest, but the contract says: exactly its headers.
            self._ledger.violations.append(violation)

    def _check(self, entry: object, feature: str | None) -> tuple[str, str, int]:
        fields = as_object(entry)
        if fields is None:
            raise not_accepted("files")
        content_type = text_field(fields, "content_type")
        name = text_field(fields, "file_name")
        size = whole_field(fields, "file_size")
        if CONTENT_TYPES.get(content_type) is None:
            raise not_accepted("content_type")
        if feature is not None and CONTENT_TYPES[content_type] not in FEATURES[feature].formats:
            raise not_accepted("content_type")
        if size <= 0:
            raise not_accepted("file_size")
        if not name.isascii():
            # Unicode names are open (contract: Input pictures); taken and noted.
            self._ledger.violations.append("file_name is not ASCII")
        return content_type, name, size

    def _add(self, content_type: str, name: str, size: int, feature: str | None) -> StoredFile:
        rng = self._chance.stream("file ids")
        # A file_id holds `/`, `+` and `=` (contract: Poll the task): `+/+/` here.
        file_id = base64.b64encode(b"\xfb\xff\xbf" + rng.randbytes(46)).decode()
        path = f"/sandbox-in/{rng.getrandbits(128):032x}"
        file = StoredFile(file_id, path, name, content_type, size, feature)
        self._by_id[file_id] = self._by_path[path] = file
        return file

    def _answer(self, file: StoredFile) -> dict[str, object]:
        url = self._links.sign("PUT", "uploads", file.path, ("content-length", "content-type"))
        headers: object
        if self._style == "list":
            # One source saw `key`, another `name`: both happen.
            word = "key" if len(self._by_id) % 2 else "name"
            headers = [
                {word: "Content-Type", "value": file.content_type},
                {word: "Content-Length", "value": str(file.size)},
            ]
        else:
            size: object = file.size if self._style == "numbers" else str(file.size)
            headers = {"Content-Type": file.content_type, "Content-Length": size}
        return {
            "content_type": file.content_type,
            "file_name": file.name,
            "file_id": file.file_id,
            "requests": [{"method": "PUT", "url": url, "headers": headers}],
        }
