"""Routes a request, admits it, and answers it by a handler or a fault.

Plain functions decide everything at one instant, the arrival of the request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from email.utils import formatdate
from types import MappingProxyType
from typing import Final, assert_never
from urllib.parse import unquote

import attrs

from ._billing import UnitAccount, price_list
from ._catalogue import FEATURES, NAMES
from ._charges import UNLIMITED, Ledger, LogEntry
from ._clock import Chance, Clock
from ._dialect import Dialect
from ._engine import thumb
from ._faults import FaultPlan, Kind, Outcome
from ._features import TEMPLATES, THUMBS, text_field
from ._files import Files
from ._http import (
    MICROSECONDS,
    ApiError,
    Request,
    Response,
    html_response,
    json_response,
    page_of,
    read_object,
)
from ._keys import Keys
from ._limits import Limiter
from ._presigned import StorageError, UrlSigner, no_such_key
from ._tasks import Tasks
from ._webhooks import WebhookSender

_SIZES: Final = {"template": 20, "history": 30, "feature_cost": 20}
# Each body is a broken answer to every kind of request.
_BROKEN: Final = (b'{"status":200,"data":{"task_', b"[]", b"", b'"ok"', b"<html>OK</html>")
TOO_MANY: Final = 429


@attrs.frozen
class Route:
    """The kind of a request, and the decoded variable `parts` of its path."""

    kind: Kind
    parts: tuple[str, ...] = ()


UNKNOWN: Final = Route("unknown")
_FIXED: Final[Mapping[tuple[str, str], Kind]] = MappingProxyType(
    {
        ("POST", "s2s/v2.0/file"): "file",
        ("POST", "s2s/v2.0/task/delete"): "delete",
        ("GET", "s2s/v2.0/task/template/ai-avatar"): "template",
        ("GET", "s2s/v2.0/task/template/ai-studio"): "template",
        ("POST", "s2s/v1.0/client/auth"): "auth",
        ("GET", "s2s/v1.0/client/credit"): "credit",
        ("GET", "s2s/v1.0/client/credit/history"): "history",
        ("GET", "s2s/v2.0/credit/feature-cost"): "feature_cost",
    }
)


def route_api(method: str, path: str, *, universal_path: bool) -> Route:
    """Return the route of an API request by its percent-encoded path, since an id may have a slash.

    HEAD has the routes of GET.
    """
    method = "GET" if method == "HEAD" else method
    path = path.strip("/")
    fixed = _FIXED.get((method, path))
    if fixed is not None and (universal_path or fixed != "file"):
        return Route(fixed)
    match method, tuple(unquote(piece) for piece in path.split("/")):
        case "POST", ("s2s", "v2.0", "file", *pieces) if "/".join(pieces) in NAMES:
            return Route("file", ("/".join(pieces),))
        case "POST", ("s2s", version, "task", *pieces):
            key = _key(version, pieces)
            return Route("task", (key,)) if key in FEATURES else UNKNOWN
        case "GET", ("s2s", version, "task", *pieces, task_id):
            key = _key(version, pieces)
            return Route("poll", (key, task_id)) if key in FEATURES else UNKNOWN
        case _:
            return UNKNOWN


def _key(version: str, pieces: list[str]) -> str:
    """Return the key of the feature in an API path; the feature's own path may have slashes."""
    path = "/".join(pieces)
    return path if version == "v2.0" else f"{path}@{version}"


class Router:
    """Answers every request to the API and to the storage hosts."""

    def __init__(
        self,
        *,
        clock: Clock,
        chance: Chance,
        ledger: Ledger,
        limiter: Limiter,
        fault_plan: FaultPlan,
        dialect: Dialect,
        urls: UrlSigner,
        files: Files,
        tasks: Tasks,
        account: UnitAccount,
        keys: Keys,
        universal_path: bool,
        sender: WebhookSender | None = None,
    ) -> None:
        self.clock = clock
        self.chance = chance
        self.ledger = ledger
        self.limiter = limiter
        self.fault_plan = fault_plan
        self.dialect = dialect
        self._urls = urls
        self._files = files
        self._tasks = tasks
        self._account = account
        self._keys = keys
        self._universal_path = universal_path
        self._sender = sender

    def leave(self, request: Request) -> Outcome | None:
        """Return the outcome that is fixed when a request is sent: prepared, `"refuse"`, or None.

        Raises `RuntimeError` if the sandbox sends webhooks and is not open.
        """
        if self._sender is not None:
            self._sender.check()
        kind = self._route(request).kind
        prepared = self.fault_plan.scripted(kind)
        if prepared is None and not self.fault_plan.connects(kind):
            return "refuse"
        return prepared

    def arrive(self, request: Request, prepared: Outcome | None) -> Response:
        """Answer a request that arrives now."""
        now = self.clock.now()
        route = self._route(request)
        response = self._answer(request, route, prepared, now)
        status = 0 if response.lost else response.status
        self.ledger.requests[route.kind] += 1
        self.ledger.log.append(LogEntry(now / MICROSECONDS, route.kind, status))
        if TOO_MANY in {status, response.error}:
            self.ledger.refused[route.kind] += 1
        request_id = str(self.chance.identifiers("request ids").getrandbits(59) + 2**59)
        date = formatdate(self.clock.wall(now), usegmt=True)
        added = {"x-request-id": request_id, "date": date}
        return attrs.evolve(response, headers={**response.headers, **added})

    def _route(self, request: Request) -> Route:
        place = self._urls.place(request)
        if place is None:
            return route_api(request.method, request.path, universal_path=self._universal_path)
        store, path = place
        if store == "uploads":
            return Route("upload", (path,))
        return Route("thumb" if path.startswith("/templates/") else "result", (path,))

    def _answer(
        self, request: Request, route: Route, prepared: Outcome | None, now: int
    ) -> Response:
        refusal = None
        if request.method == "OPTIONS":
            # Browsers and proxies ask for the allowed methods without a key.
            return Response(204, headers={"allow": "GET, HEAD, POST, PUT, OPTIONS"})
        if route.kind not in UNLIMITED:
            # A prepared answer also counts for the limits.
            refusal = self._admit(request, route, now)
        if prepared is None or prepared == "pass":
            if refusal is not None:
                return refusal.response(self.dialect)
            outcome: Outcome = self.fault_plan.draw(route.kind) if prepared is None else "pass"
        else:
            outcome = prepared
        return self._apply(outcome, request, route)

    def _apply(self, outcome: Outcome, request: Request, route: Route) -> Response:
        """Return the response of an admitted request whose outcome is decided."""
        if isinstance(outcome, tuple):
            return _scripted(*outcome)
        if outcome == "pass":
            return self._execute(request, route)
        # A poll whose answer is lost does not renew the lease (the pessimistic reading).
        if outcome in {"lose", "lose_502", "malformed"} and route.kind != "poll":
            self._execute(request, route)
        match outcome:
            case "hang":
                seconds = self.fault_plan.faults.hang_seconds
                return html_response(504, "504 Gateway Time-out", delay=seconds)
            case "gateway" | "lose_502":
                return html_response(502, "502 Bad Gateway")
            case "limited":
                return _too_many().response(self.dialect)
            case "malformed":
                return Response(200, self.chance.stream("broken answers").choice(_BROKEN))
            case "drop" | "lose" | "refuse":
                return Response(0, lost=True)
            case _:
                assert_never(outcome)

    def _admit(self, request: Request, route: Route, now: int) -> ApiError | None:
        """Check the key and count the request; return the error if it is not admitted."""
        try:
            # A request for an access token needs no key, but is limited, too.
            header = request.headers.get("authorization", "")
            key = "" if route.kind == "auth" else self._keys.check(header)
        except ApiError as error:
            return error
        return None if self.limiter.admits(key, now) else _too_many()

    def _execute(self, request: Request, route: Route) -> Response:
        try:
            return self._handle(request, route)
        except ApiError as error:
            if error.violation is not None:
                self.ledger.violations.append(f"{route.kind}: {error.violation}")
            return error.response(self.dialect)
        except StorageError as error:
            if error.violation is not None:
                self.ledger.violations.append(f"{route.kind}: {error.violation}")
            return error.response()

    def _handle(self, request: Request, route: Route) -> Response:
        faults, dialect = self.fault_plan.faults, self.dialect
        self._tasks.settle(self.clock.now())
        match route.kind, route.parts:
            case "file", parts:
                feature = parts[0] if parts else None
                return _ok(data=self._files.register(request, feature, self._repeats_file_id))
            case "upload", (path,):
                self._files.receive(request, path)
                etag = hashlib.sha256(request.body).hexdigest()[:32]
                return Response(200, content_type="application/xml", headers={"etag": f'"{etag}"'})
            case "task", (feature,):
                body = read_object(request.body)
                return _ok(data=self._tasks.create(FEATURES[feature], body, faults, dialect))
            case "poll", (feature, task_id):
                return _ok(data=self._tasks.poll(FEATURES[feature], task_id, dialect))
            case "delete", _:
                self._tasks.delete(text_field(read_object(request.body), "task_id"))
                return _ok()
            case "auth", _:
                return _ok(result=self._keys.authenticate(read_object(request.body)))
            case "result", (path,):
                self._urls.check(request, "results", path)
                return Response(200, self._tasks.output(path), "binary/octet-stream")
            case "thumb", (path,):
                return self._thumb(request, path)
            case _:
                return self._look_up(request, route.kind)

    def _repeats_file_id(self) -> bool:
        share = self.fault_plan.faults.repeated_file_ids
        return self.chance.happens(share, "repeated file ids")

    def _look_up(self, request: Request, kind: Kind) -> Response:
        query = request.parameters()
        if kind == "credit":
            return _ok(results=self._account.as_json())
        if kind == "template":
            shown, token = page_of(TEMPLATES, query, limit=_SIZES[kind])
            templates = [template.as_json(self._urls) for template in shown]
            return _ok(data={"templates": templates, "next_token": token})
        if kind == "history":
            page, token = page_of(self._account.history(), query, limit=_SIZES[kind])
            rows = [row.as_json(self.dialect) for row in page]
            if self.dialect.history == "object":
                return _ok(result={"next_token": None, "history": dict[str, object]()})
            return _ok(result={"next_token": token, "history": rows})
        if kind == "feature_cost":
            prices, token = page_of(price_list(self.dialect), query, limit=_SIZES[kind])
            return _ok(result={"next_token": token, "skus": list(prices)})
        raise ApiError(404, "Not Found", "NotFound", self._misstep(request))

    def _misstep(self, request: Request) -> str:
        """Return the likely mistake behind an unknown path."""
        prefix, _, rest = unquote(request.path).partition("/task/")
        feature = next((name for name in NAMES if rest.startswith(f"{name}/")), "")
        if prefix.startswith("/s2s/v2.") and self._tasks.knows(rest.removeprefix(f"{feature}/")):
            return "task_id not percent-encoded"
        return f"unknown path {request.method} {request.path}"

    def _thumb(self, request: Request, path: str) -> Response:
        if "authorization" in request.headers:
            text = "Only one auth mechanism allowed."
            violation = "Authorization header sent to the results host"
            raise StorageError(400, "InvalidArgument", text, violation)
        if path not in THUMBS:
            raise no_such_key()
        return Response(200, thumb(THUMBS[path]), "image/jpeg")


def _too_many() -> ApiError:
    return ApiError(TOO_MANY, "Too many requests")


def _ok(**fields: object) -> Response:
    return json_response(200, {"status": 200, **fields})


def _scripted(status: int, body: object) -> Response:
    """Return a prepared answer: a string is sent as HTML, everything else as JSON."""
    if isinstance(body, str):
        return Response(status, body.encode(), "text/html")
    return json_response(status, body)
