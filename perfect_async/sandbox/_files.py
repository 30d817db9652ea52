"""Registered files, and the upload host that receives their bytes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Literal

import attrs

from ._catalogue import NAMES
from ._charges import Ledger
from ._clock import Chance
from ._features import text_field, whole_field
from ._http import Request, as_list, as_object, invalid, not_accepted, read_object, required
from ._presigned import StorageError, UrlSigner, no_such_key

HeaderStyle = Literal["object", "numbers", "list"]

# Both spellings of JPEG are accepted; the type of HEIC is assumed (contract: Input pictures).
CONTENT_TYPES = {
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/png": "png",
    "image/heic": "heic",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
}
# Headers that HTTP clients add (Node, Java, curl, Go, URLSession, aiohttp, proxies). S3 does not
# sign them.
_STANDARD = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "date",
        "dnt",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "origin",
        "pragma",
        "priority",
        "proxy-connection",
        "range",
        "referer",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "upgrade-insecure-requests",
        "user-agent",
        "via",
    }
)
_STANDARD_PREFIXES = ("sec-", "x-forwarded-")


@attrs.define(eq=False)
class StoredFile:
    """A registered file; `data` is None until the upload."""

    file_id: str
    path: str
    name: str
    content_type: str
    size: int
    feature: str | None
    data: bytes | None = attrs.field(default=None, repr=False)
    deleted: bool = False


class Files:
    """Registers files and receives uploads."""

    def __init__(
        self,
        urls: UrlSigner,
        chance: Chance,
        ledger: Ledger,
        *,
        limit: int,
        style: HeaderStyle,
    ) -> None:
        self._urls = urls
        self._chance = chance
        self._ledger = ledger
        self._limit = limit
        self._style: HeaderStyle = style
        self._by_id: dict[str, StoredFile] = {}
        self._by_path: dict[str, StoredFile] = {}
        self._newest: StoredFile | None = None

    def find(self, file_id: str) -> StoredFile | None:
        """Return the file with this id, or None if it is unknown or deleted."""
        found = self._by_id.get(file_id)
        return None if found is None or found.deleted else found

    def register(
        self, request: Request, feature: str | None, repeated: Callable[[], bool]
    ) -> object:
        """Handle `POST /file`: register all files of the request, in order, or none.

        `repeated` decides for each file whether it wrongly gets the id of the previous file.
        """
        entries = as_list(read_object(request.body).get("files"))
        if not entries:
            raise required("files")
        if len(entries) > self._limit:
            # Not a violation: the limit of files per call is open (contract: Register the file).
            raise invalid(f"files may hold at most {self._limit} items.")
        checked = [self._check(index, entry, feature) for index, entry in enumerate(entries)]
        answers: list[object] = []
        for fields in checked:
            earlier, file = self._newest, self._add(*fields, feature)
            self._newest = file
            named = earlier if earlier is not None and repeated() else file
            answers.append(self._entry(file, named))
        return {"files": answers}

    def receive(self, request: Request, path: str) -> None:
        """Handle a PUT: require exactly the signed headers and the registered length."""
        self._urls.check(request, "uploads", path)
        file = self._by_path.get(path)
        if file is None or file.deleted:
            raise no_such_key()
        length = request.headers.get("content-length")
        if length is None:
            raise StorageError(
                411,
                "MissingContentLength",
                "You must provide the Content-Length HTTP header.",
                "upload without Content-Length",
            )
        self._check_signed(request, file, length)
        if len(request.body) != file.size:
            raise StorageError(
                400,
                "IncompleteBody",
                "You did not provide the number of bytes specified by the Content-Length header.",
                f"upload of {len(request.body)} bytes announced as {length}",
            )
        file.data = request.body

    def _check_signed(self, request: Request, file: StoredFile, length: str) -> None:
        signed = {"content-type": file.content_type, "content-length": str(file.size)}
        sent = {"content-type": request.headers.get("content-type"), "content-length": length}
        if sent != signed:
            raise StorageError(
                403,
                "SignatureDoesNotMatch",
                "The signed headers differ.",
                f"upload with {sent} where {signed} was signed",
            )
        for name in request.headers:
            if name in signed or name in _STANDARD or name.startswith(_STANDARD_PREFIXES):
                continue
            violation = f"upload with the header {name}, which was not given"
            if name.startswith("x-amz-"):
                raise StorageError(
                    403,
                    "AccessDenied",
                    "There were headers present in the request which were not signed",
                    violation,
                )
            # S3 ignores other headers, but the contract demands exactly the given ones.
            self._ledger.violations.append(violation)

    def _check(self, index: int, entry: object, feature: str | None) -> tuple[str, str, int]:
        fields = as_object(entry)
        if fields is None:
            # The error of a value in an array names its index (contract: Errors).
            raise not_accepted(f"`{index}`")
        content_type = text_field(fields, "content_type")
        name = text_field(fields, "file_name")
        size = whole_field(fields, "file_size")
        if CONTENT_TYPES.get(content_type) is None:
            raise not_accepted("content_type")
        if feature is not None and CONTENT_TYPES[content_type] not in NAMES[feature].formats:
            raise not_accepted("content_type")
        if size <= 0:
            raise not_accepted("file_size")
        if not name.isascii():
            # Unicode names are open (contract: Input pictures): accepted and reported.
            self._ledger.violations.append("file_name is not ASCII")
        return content_type, name, size

    def _add(self, content_type: str, name: str, size: int, feature: str | None) -> StoredFile:
        rng = self._chance.identifiers("file ids")
        # File ids have `/`, `+` and `=` (contract: Poll the task); these bytes give `+/+/`.
        file_id = base64.b64encode(b"\xfb\xff\xbf" + rng.randbytes(46)).decode()
        path = f"/sandbox-in/{rng.getrandbits(128):032x}"
        file = StoredFile(file_id, path, name, content_type, size, feature)
        self._by_id[file_id] = self._by_path[path] = file
        return file

    def _entry(self, file: StoredFile, named: StoredFile) -> dict[str, object]:
        url = self._urls.sign("PUT", "uploads", file.path, ("content-length", "content-type"))
        headers: object
        if self._style == "list":
            # `key` was observed, and so was `name` (contract: Register the file).
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
            "file_id": named.file_id,
            "requests": [{"method": "PUT", "url": url, "headers": headers}],
        }
