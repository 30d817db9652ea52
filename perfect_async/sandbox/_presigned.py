"""Presigned URLs that look and fail like those of S3 (contract: The flow of one picture)."""

from __future__ import annotations

import hashlib
import hmac
import time
from calendar import timegm
from typing import Literal
from urllib.parse import quote, unquote, urlencode

import attrs

from ._clock import Clock
from ._http import Request, Response

Store = Literal["uploads", "results"]

HOSTS: dict[Store, str] = {
    "uploads": "uploads.sandbox.example",
    "results": "results.sandbox.example",
}
_STAMP = "%Y%m%dT%H%M%SZ"


class StorageError(Exception):
    """An error answer of a storage host, as XML without the API's envelope."""

    def __init__(self, status: int, code: str, text: str, violation: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.violation = violation

    def response(self) -> Response:
        """Return the XML error."""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>{self.text}</Message></Error>"
        )
        return Response(self.status, body.encode(), "application/xml")


def no_such_key() -> StorageError:
    """Return the 404 for an object that does not exist or was deleted."""
    return StorageError(404, "NoSuchKey", "The specified key does not exist.")


@attrs.define
class UrlSigner:
    """Signs paths on the storage hosts and verifies the URLs of incoming requests.

    With an `origin`, one port serves everything, and the stores are paths of this origin.
    """

    origin: str | None
    lifetime: float
    _secret: bytes = attrs.field(repr=False)
    _clock: Clock
    _count: int = 0

    def place(self, request: Request) -> tuple[Store, str] | None:
        """Return the store and the decoded path in it, or `None` for an API request."""
        for store, host in HOSTS.items():
            if self.origin is None:
                if request.host.partition(":")[0] == host:
                    return store, unquote(request.path)
            elif request.path.startswith(f"/_{store}/"):
                return store, unquote(request.path.removeprefix(f"/_{store}"))
        return None

    def plain(self, store: Store, path: str) -> str:
        """Return an unsigned URL with the unchanged path."""
        base = f"https://{HOSTS[store]}" if self.origin is None else f"{self.origin}/_{store}"
        return base + path

    def sign(self, method: str, store: Store, path: str, headers: tuple[str, ...] = ()) -> str:
        """Return a new URL for one method on one path, valid for `lifetime` seconds."""
        now = self._clock.wall(self._clock.now())
        self._count += 1
        stamp = time.strftime(_STAMP, time.gmtime(now))
        nonce = hashlib.sha256(b"%d" % self._count).hexdigest()[:24]
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"SANDBOX/{stamp[:8]}/us-east-1/s3/aws4_request",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": f"{self.lifetime:.0f}",
            "X-Amz-Security-Token": nonce,
            "X-Amz-SignedHeaders": ";".join(sorted((*headers, "host"))),
        }
        query["X-Amz-Signature"] = self._signature(method, store, path, query)
        return f"{self.plain(store, quote(path))}?{urlencode(query)}"

    def check(self, request: Request, store: Store, path: str) -> None:
        """Raise `StorageError` for a wrong signature, another method and an expired URL."""
        if "authorization" in request.headers:
            raise StorageError(
                400,
                "InvalidArgument",
                "Only one auth mechanism allowed.",
                f"Authorization header sent to the {store} host",
            )
        query = request.parameters()
        given = query.pop("X-Amz-Signature", "")
        if not hmac.compare_digest(
            given.encode(), self._signature(request.method, store, path, query).encode()
        ):
            raise StorageError(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
                f"{request.method} on the {store} host with a URL that was not given for it",
            )
        signed = timegm(time.strptime(query["X-Amz-Date"], _STAMP))
        if self._clock.wall(self._clock.now()) > signed + float(query["X-Amz-Expires"]):
            raise StorageError(403, "AccessDenied", "Request has expired")

    def _signature(self, method: str, store: Store, path: str, query: dict[str, str]) -> str:
        text = "\n".join([method, store, path, *(f"{k}={v}" for k, v in sorted(query.items()))])
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
