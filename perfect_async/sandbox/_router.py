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

from ._billing import Purse, price_list
from ._charges import UNLIMITED, Ledger, LogEntry
from ._clock import Chance, Clock
from ._engine import thumb
from ._faults import Fate, Fates, Kind
from ._features import FEATURES, text_field
from ._files import Files
from ._http import (
    MICROSECONDS,
    Answer,
    Call,
    Refused,
    html_answer,
    json_answer,
    page_of,
    read_object,
)
from ._limits import Limiter
from ._presigned import Links, StorageError, no_such_key
from ._tasks import Tasks
from ._templates import TEMPLATES, THUMBS
from ._webhooks import Postman

_BEARER: Final = re.compile(r"Bearer ([\x21-\x7e]+)")
_SIZES: Final = {"template": 20, "history": 30, "feature_cost": 20}
# Each of them is a broken answer to every kind of call.
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


class Vendor:
    """The rules of the service over its parts."""

    def __init__(
        self,
        *,
        clock: Clock,
        chance: Chance,
        ledger: Ledger,
        limiter: Limiter,
        fates: Fates,
        links: Links,
        files: Files,
        tasks: Tasks,
        purse: Purse,
        api_keys: Collection[str] | None,
        universal_path: bool,
        postman: Postman | None = None,
    ) -> None:
        self.clock = clock
        self.chance = chance
        self.ledger = ledger
        self.limiter = limiter
        self.fates = fates
        self._links = links
        self._files = files
        self._tasks = tasks
        self._purse = purse
        self._api_keys = None if api_keys is None else frozenset(api_keys)
        self._universal_path = universal_path
        self.postman = postman

    def leave(self, call: Call) -> Fate | None:
        """The fate fixed when the call leaves: prepared, `"refuse"`, or `None` for chance.

        Raises `RuntimeError` if it sends webhooks and is not open.
        """
        if self.postman is not None:
            self.postman.check()
        kind = self._route(call).kind
        prepared = self.fates.scripted(kind)
        if prepared is None and not self.fates.connects(kind):
            return "refuse"
        return prepared

    def arrive(self, call: Call, prepared: Fate | None) -> Answer:
        """Everything that the vendor does with a call, and its answer."""
        now = self.clock.now()
        route = self._route(call)
        answer = self._judge(call, route, prepared, now)
        status = 0 if answer.lost else answer.status
        self.ledger.requests[route.kind] += 1
        self.ledger.log.append(LogEntry(now / MICROSECONDS, route.kind, status))
        if status == TOO_MANY:
            self.ledger.refused[route.kind] += 1
        request_id = str(self.chance.stream("request ids").getrandbits(59) + 2**59)
        return attrs.evolve(answer, headers={**answer.headers, "x-request-id": request_id})

    def _route(self, call: Call) -> Route:
        place = self._links.place(call)
        if place is None:
            return route_api(call.method, call.path, universal_path=self._universal_path)
        store, path = place
        if store == "uploads":
            return Route("upload", (path,))
        return Route("thumb" if path.startswith("/templates/") else "result", (path,))

    def _judge(self, call: Call, route: Route, prepared: Fate | None, now: int) -> Answer:
        refusal = None
        if route.kind not in UNLIMITED:
            # A prepared answer spends the window like any other arrival.
            refusal = self._admit(call, now)
        if prepared is None or prepared == "pass":
            if refusal is not None:
                return refusal.answer()
            fate: Fate = self.fates.draw(route.kind) if prepared is None else "pass"
        else:
            fate = prepared
        if isinstance(fate, tuple):
            return _written(*fate)
        if fate in {"drop", "refuse"}:
            return Answer(0, lost=True)
        if fate == "hang":
            seconds = self.fates.faults.hang_seconds
            return html_answer(504, "504 Gateway Time-out", delay=seconds)
        if fate == "gateway":
            return html_answer(502, "502 Bad Gateway")
        # Whatever keeps a poll's answer from the client renews nothing: the pessimistic reading.
        executed = fate == "pass" or route.kind != "poll"
        answer = self._execute(call, route) if executed else Answer(200)
        if fate == "lose":
            return attrs.evolve(answer, lost=True)
        if fate == "malformed":
            return Answer(200, self.chance.stream("broken answers").choice(_BROKEN))
        return answer

    def _admit(self, call: Call, now: int) -> Refused | None:
        found = _BEARER.fullmatch(call.headers.get("authorization", ""))
        if found is None:
            return Refused(401, "The access token is missing or malformed.", "InvalidAccessToken")
        if self._api_keys is not None and found[1] not in self._api_keys:
            return Refused(401, "The API key is invalid.", "InvalidApiKey")
        if not self.limiter.admits(found[1], now):
            return Refused(TOO_MANY, "Too many requests")
        return None

    def _execute(self, call: Call, route: Route) -> Answer:
        try:
            return self._handle(call, route)
        except Refused as refused:
            if refused.violation is not None:
                self.ledger.violations.append(f"{route.kind}: {refused.violation}")
            return refused.answer()
        except StorageError as error:
            if error.violation is not None:
                self.ledger.violations.append(f"{route.kind}: {error.violation}")
            return error.answer()

    def _handle(self, call: Call, route: Route) -> Answer:
        match route.kind, route.parts:
            case "file", parts:
                return _ok(data=self._files.register(call, parts[0] if parts else None))
            case "upload", (path,):
                self._files.receive(call, path)
                etag = hashlib.sha256(call.body).hexdigest()[:32]
                return Answer(200, content_type="application/xml", headers={"etag": f'"{etag}"'})
            case "task", (feature,):
                body = read_object(call.body)
                return _ok(data=self._tasks.create(FEATURES[feature], body, self.fates.faults))
            case "poll", (feature, task_id):
                return _ok(data=self._tasks.poll(FEATURES[feature], task_id))
            case "delete", _:
                self._tasks.delete(text_field(read_object(call.body), "task_id"))
                return _ok()
            case "result", (path,):
                self._links.check(call, "results", path)
                return Answer(200, self._tasks.output(path), "binary/octet-stream")
            case "thumb", (path,):
                return self._thumb(call, path)
            case _:
                return self._look_up(call, route.kind)

    def _look_up(self, call: Call, kind: Kind) -> Answer:
        query = call.parameters()
        if kind == "credit":
            return _ok(results=self._purse.wire(self.clock.wall(self.clock.now())))
        if kind == "template":
            shown, token = page_of(TEMPLATES, query, most=_SIZES[kind])
            templates = [template.wire(self._links) for template in shown]
            return _ok(data={"templates": templates, "next_token": token})
        if kind == "history":
            moves, token = page_of(self._purse.history[::-1], query, most=_SIZES[kind])
            return _ok(result={"next_token": token, "history": [move.wire() for move in moves]})
        if kind == "feature_cost":
            prices, token = page_of(price_list(), query, most=_SIZES[kind])
            return _ok(result={"next_token": token, "skus": list(prices)})
        raise Refused(404, "Not Found", None, self._misstep(call))

    def _misstep(self, call: Call) -> str:
        """Name the mistake behind an unknown path."""
        prefix, _, rest = unquote(call.path).partition("/task/")
        task_id = rest.partition("/")[2]
        if prefix == "/s2s/v2.0" and self._tasks.knows(task_id):
            return "task_id not percent-encoded"
        return f"unknown path {call.method} {call.path}"

    def _thumb(self, call: Call, path: str) -> Answer:
        if "authorization" in call.headers:
            text = "Only one auth mechanism allowed."
            violation = "Authorization header sent to the results host"
            raise StorageError(400, "InvalidArgument", text, violation)
        if path not in THUMBS:
            raise no_such_key()
        return Answer(200, thumb(THUMBS[path]), "image/jpeg")


def _ok(**fields: object) -> Answer:
    return json_answer(200, {"status": 200, **fields})


def _written(status: int, body: object) -> Answer:
    """A prepared answer: text stands for a gateway's HTML, everything else is JSON."""
    if isinstance(body, str):
        return Answer(status, body.encode(), "text/html")
    return json_answer(status, body)
