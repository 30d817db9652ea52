"""The vendor: which call is meant, whether it may pass, what becomes of it.

All of it is decided at one instant, the call's arrival, in plain functions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote

import attrs

from ._billing import UnitAccount, price_list
from ._charges import UNLIMITED, Ledger, LogEntry
from ._clock import Chance, Clock
from ._engine import thumb
from ._faults import FaultPlan, Kind, Outcome
from ._features import FEATURES, TEMPLATES, THUMBS, text_field
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
from ._limits import Limiter
from ._presigned import StorageError, UrlSigner, no_such_key
from ._tasks import Tasks
from ._webhooks import WebhookSender

_BEARER: Final = re.compile(r"Bearer ([\x21-\x7e]+)")
_SIZES: Final = {"template": 20, "history": 30, "feature_cost": 20}
# Each of them is a broken answer to every kind of request.
_BROKEN: Final = (b'{"status":200,"data":{"task_', b"[]", b"", b'"ok"', b"<html>OK</html>")
TOO_MANY: Final = 429


@attrs.frozen
class Route:
    """What a call wants; `parts` are the decoded variable pieces of its path."""

    kind: Kind
    parts: tuple[str, ...] = ()


UNKNOWN: Final = Route("unknown")


def route_api(method: str, path: str, *, universal_path: bool) -> Route:
    """Read the path of an API call, still percent-encoded, so that an id may hold a slash."""
    pieces = tuple(unquote(piece) for piece in path.strip("/").split("/"))
    match method, pieces:
        case "POST", ("s2s", "v2.0", "file") if universal_path:
            return Route("file")
        case "POST", ("s2s", "v2.0", "file", feature) if feature in FEATURES:
            return Route("file", (feature,))
        case "POST", ("s2s", "v2.0", "task", "delete"):
            return Route("delete")
        case "GET", ("s2s", "v2.0", "task", "template", "ai-avatar"):
            return Route("template")
        case "POST", ("s2s", "v2.0", "task", feature) if feature in FEATURES:
            return Route("task", (feature,))
        case "GET", ("s2s", "v2.0", "task", feature, task_id) if feature in FEATURES:
            return Route("poll", (feature, task_id))
        case "GET", ("s2s", "v1.0", "client", "credit"):
            return Route("credit")
        case "GET", ("s2s", "v1.0", "client", "credit", "history"):
            return Route("history")
        case "GET", ("s2s", "v2.0", "credit", "feature-cost"):
            return Route("feature_cost")
        case _:
            return UNKNOWN


class Router:
    """The rules of the service over its parts."""

    def __init__(
        self,
        *,
        clock: Clock,
        chance: Chance,
        ledger: Ledger,
        limiter: Limiter,
        fault_plan: FaultPlan,
        urls: UrlSigner,
        files: Files,
        tasks: Tasks,
        account: UnitAccount,
        api_keys: Collection[str] | None,
        universal_path: bool,
        sender: WebhookSender | None = None,
    ) -> None:
        self.clock = clock
        self.chance = chance
        self.ledger = ledger
        self.limiter = limiter
        self.fault_plan = fault_plan
        self._urls = urls
        self._files = files
        self._tasks = tasks
        self._account = account
        self._api_keys = None if api_keys is None else frozenset(api_keys)
        self._universal_path = universal_path
        self._sender = sender

    def leave(self, request: Request) -> Outcome | None:
        """The fate fixed when the call leaves: prepared, `"refuse"`, or `None` for chance.

        Raises `RuntimeError` if it sends webhooks and is not open.
        """
        if self._sender is not None:
            self._sender.check()
        kind = self._route(request).kind
        prepared = self.fault_plan.scripted(kind)
        if prepared is None and not self.fault_plan.connects(kind):
            return "refuse"
        return prepared

    def arrive(self, request: Request, prepared: Outcome | None) -> Response:
        """Everything that the vendor does with a call, and its answer."""
        now = self.clock.now()
        route = self._route(request)
        answer = self._judge(request, route, prepared, now)
        status = 0 if answer.lost else answer.status
        self.ledger.requests[route.kind] += 1
        self.ledger.log.append(LogEntry(now / MICROSECONDS, route.kind, status))
        if status == TOO_MANY:
            self.ledger.refused[route.kind] += 1
        request_id = str(self.chance.stream("request ids").getrandbits(59) + 2**59)
        return attrs.evolve(answer, headers={**answer.headers, "x-request-id": request_id})

    def _route(self, request: Request) -> Route:
        place = self._urls.place(request)
        if place is None:
            return route_api(request.method, request.path, universal_path=self._universal_path)
        store, path = place
        if store == "uploads":
            return Route("upload", (path,))
        return Route("thumb" if path.startswith("/templates/") else "result", (path,))

    def _judge(
        self, request: Request, route: Route, prepared: Outcome | None, now: int
    ) -> Response:
        refusal = None
        if route.kind not in UNLIMITED:
            # A prepared answer spends the window like any other arrival.
            refusal = self._admit(request, now)
        if prepared is None or prepared == "pass":
            if refusal is not None:
                return refusal.response()
            fate: Outcome = self.fault_plan.draw(route.kind) if prepared is None else "pass"
        else:
            fate = prepared
        if isinstance(fate, tuple):
            return _written(*fate)
        if fate in {"drop", "refuse"}:
            return Response(0, lost=True)
        if fate == "hang":
            seconds = self.fault_plan.faults.hang_seconds
            return html_response(504, "504 Gateway Time-out", delay=seconds)
        if fate == "gateway":
            return html_response(502, "502 Bad Gateway")
        # Whatever keeps a poll's answer from the client renews nothing: the pessimistic reading.
        executed = fate == "pass" or route.kind != "poll"
        answer = self._execute(request, route) if executed else Response(200)
        if fate == "lose":
            return attrs.evolve(answer, lost=True)
        if fate == "malformed":
            return Response(200, self.chance.stream("broken answers").choice(_BROKEN))
        return answer

    def _admit(self, request: Request, now: int) -> ApiError | None:
        found = _BEARER.fullmatch(request.headers.get("authorization", ""))
        if found is None:
            return ApiError(401, "The access token is missing or malformed.", "InvalidAccessToken")
        if self._api_keys is not None and found[1] not in self._api_keys:
            return ApiError(401, "The API key is invalid.", "InvalidApiKey")
        if not self.limiter.admits(found[1], now):
            return ApiError(TOO_MANY, "Too many requests")
        return None

    def _execute(self, request: Request, route: Route) -> Response:
        try:
            return self._handle(request, route)
        except ApiError as refused:
            if refused.violation is not None:
                self.ledger.violations.append(f"{route.kind}: {refused.violation}")
            return refused.response()
        except StorageError as error:
            if error.violation is not None:
                self.ledger.violations.append(f"{route.kind}: {error.violation}")
            return error.response()

    def _handle(self, request: Request, route: Route) -> Response:
        match route.kind, route.parts:
            case "file", parts:
                return _ok(data=self._files.register(request, parts[0] if parts else None))
            case "upload", (path,):
                self._files.receive(request, path)
                etag = hashlib.sha256(request.body).hexdigest()[:32]
                return Response(200, content_type="application/xml", headers={"etag": f'"{etag}"'})
            case "task", (feature,):
                body = read_object(request.body)
                return _ok(data=self._tasks.create(FEATURES[feature], body, self.fault_plan.faults))
            case "poll", (feature, task_id):
                return _ok(data=self._tasks.poll(FEATURES[feature], task_id))
            case "delete", _:
                self._tasks.delete(text_field(read_object(request.body), "task_id"))
                return _ok()
            case "result", (path,):
                self._urls.check(request, "results", path)
                return Response(200, self._tasks.output(path), "binary/octet-stream")
            case "thumb", (path,):
                return self._thumb(request, path)
            case _:
                return self._look_up(request, route.kind)

    def _look_up(self, request: Request, kind: Kind) -> Response:
        query = request.parameters()
        if kind == "credit":
            return _ok(results=self._account.as_json(self.clock.wall(self.clock.now())))
        if kind == "template":
            shown, token = page_of(TEMPLATES, query, most=_SIZES[kind])
            templates = [template.as_json(self._urls) for template in shown]
            return _ok(data={"templates": templates, "next_token": token})
        if kind == "history":
            moves, token = page_of(self._account.history[::-1], query, most=_SIZES[kind])
            return _ok(result={"next_token": token, "history": [move.as_json() for move in moves]})
        if kind == "feature_cost":
            prices, token = page_of(price_list(), query, most=_SIZES[kind])
            return _ok(result={"next_token": token, "skus": list(prices)})
        raise ApiError(404, "Not Found", None, self._misstep(request))

    def _misstep(self, request: Request) -> str:
        """Name the mistake behind an unknown path."""
        prefix, _, rest = unquote(request.path).partition("/task/")
        task_id = rest.partition("/")[2]
        if prefix == "/s2s/v2.0" and self._tasks.knows(task_id):
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


def _ok(**fields: object) -> Response:
    return json_response(200, {"status": 200, **fields})


def _written(status: int, body: object) -> Response:
    """A prepared answer: text stands for a gateway's HTML, everything else is JSON."""
    if isinstance(body, str):
        return Response(status, body.encode(), "text/html")
    return json_response(status, body)
