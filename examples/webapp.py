"""A web app that makes its visitors' portraits smile.

    YOUCAM_API_KEY=... uvicorn --no-access-log --timeout-graceful-shutdown 5 examples.webapp:app
    curl -i -H 'Content-Type: image/jpeg' --data-binary @selfie.jpg http://127.0.0.1:8000/smiles

- The work belongs to the app, not to a request: whoever goes away and comes back finds the result,
  and what is in flight when the app dies is finished by the next one, from the journal.
- With YOUCAM_WEBHOOK_SECRET the vendor's notifications are taken at /webhook.
- An upload is in memory until its job has ended, and nowhere else. A result is on the disk for an
  hour, in SMILES_FOLDER, behind an id that nobody can guess; the vendor's copies are deleted. An
  access log would hold the ids.
- Who may upload is yours to say: put your login in front. It is one process: one keeps the request
  budget of a key, and one at a time has the journal.
"""

import base64
import hashlib
import json
import mimetypes
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.webapp_orders import Full, Order, Orders
from perfect_async import (
    BadAnswer,
    CeilingReached,
    Client,
    JobRefused,
    NotSaved,
    PerfectError,
    RequestRefused,
    Smile,
    TaskError,
    TaskFailed,
    UnitsExhausted,
)
from perfect_async.webhooks import WebhookApp

FOLDER = Path(os.environ.get("SMILES_FOLDER", "smiles"))
MOST_UNITS = 1000.0  # what visitors may cost until somebody starts the app anew
PATIENCE = 120.0  # seconds for an upload, which has a place in memory
MOMENT = 0.5  # seconds in which it shows what is wrong with a picture, or with us
STREAM = 30  # seconds after which a browser asks for its events again


def status_of(error: PerfectError) -> HTTPStatus:
    match error:
        case JobRefused() | TaskFailed():  # PictureRefused too; no face in it, most often
            return HTTPStatus.UNPROCESSABLE_ENTITY
        case UnitsExhausted() if not isinstance(error, CeilingReached):
            return HTTPStatus.PAYMENT_REQUIRED  # by you
        case NotSaved():
            return HTTPStatus.INTERNAL_SERVER_ERROR  # your disk
        case TaskError() | RequestRefused() | BadAnswer():
            return HTTPStatus.BAD_GATEWAY
        case _:
            return HTTPStatus.SERVICE_UNAVAILABLE


def told(orders: Orders, order: Order) -> dict[str, object]:
    """How an order stands; why it failed only where the picture is to blame."""
    if order.error is not None:
        ours = status_of(order.error) != HTTPStatus.UNPROCESSABLE_ENTITY
        message = None if ours else order.error.message
        name = type(order.error).__name__
        return {"id": order.id, "state": "failed", "error": name, "message": message}
    if order.ended.is_set():
        return {"id": order.id, "state": "done"}
    ahead = orders.ahead(order)
    return {"id": order.id, "state": "running" if ahead is None else "waiting", "ahead": ahead}


def found(request: Request) -> tuple[Orders, Order]:
    orders: Orders = request.app.state.orders
    if (order := orders.find(request.path_params["id"])) is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return orders, order


async def create(request: Request) -> Response:
    # No form can send such a type, so no other site's page can upload in a visitor's name; and a
    # picture that is in no form has no file name.
    if not request.headers.get("content-type", "").startswith("image/"):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "That is no picture.")
    orders: Orders = request.app.state.orders
    try:
        with orders.begin() as order:
            with anyio.fail_after(PATIENCE):
                content = await body(request)
    except Full:
        soon = {"Retry-After": "30"}
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many at once.", soon) from None
    except TimeoutError:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "It took too long.") from None
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # which nobody reads
    orders.run(order, content)
    with anyio.move_on_after(MOMENT):
        await order.ended.wait()
    if order.error is not None:
        await orders.forget(order)
        return JSONResponse(told(orders, order), status_of(order.error))
    place = {"Location": str(request.app.url_path_for("state", id=order.id))}
    return JSONResponse(told(orders, order), HTTPStatus.ACCEPTED, place)


async def body(request: Request) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > Smile.largest:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "It is over 10 MB.")
    return bytes(content)


async def state(request: Request) -> Response:
    return JSONResponse(told(*found(request)))


async def result(request: Request) -> Response:
    orders, order = found(request)
    if order.error is not None:
        return JSONResponse(told(orders, order), status_of(order.error))
    if order.file is None:
        raise HTTPException(HTTPStatus.CONFLICT, "It is not done yet.")
    content = await anyio.Path(order.file).read_bytes()
    return Response(content, media_type=mimetypes.guess_type(order.file)[0])


async def events(request: Request) -> Response:
    return StreamingResponse(story(*found(request)), media_type="text/event-stream")


async def story(orders: Orders, order: Order) -> AsyncIterator[str]:
    """Each news as an event; every second something, so that nothing between thinks it dead."""
    before = None
    for _ in range(STREAM):
        now = told(orders, order)
        yield ":\n\n" if now == before else f"data: {json.dumps(now)}\n\n"
        if now["state"] in {"done", "failed"}:
            return
        before = now
        with anyio.move_on_after(1.0):
            await order.ended.wait()


PAGE = Path(__file__).with_suffix(".html").read_text("utf-8")


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE)


def only(tag: str) -> str:
    """The policy for the page's one `tag`: this text, and no other."""
    [text] = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; {only('script')}; {only('style')}; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",  # faces, and the ids that lead to them
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guarded:
    """`app` with HEADERS on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, guarded)


async def refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    said = {"error": HTTPStatus(error.status_code).phrase, "message": error.detail}
    return JSONResponse(said, error.status_code, error.headers)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await anyio.Path(FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
    async with anyio.create_task_group() as group:
        # Leaving it keeps polling what runs, for 30 s: let the process manager wait that long.
        async with Client(journal=FOLDER / "journal", max_units=MOST_UNITS) as client:
            app.state.orders = Orders(client, group, FOLDER / "results")
            if os.environ.get("YOUCAM_WEBHOOK_SECRET"):
                app.router.routes.append(Route("/webhook", WebhookApp(client.webhooks)))
            yield
        group.cancel_scope.cancel()


def create_app() -> Starlette:
    return Starlette(
        routes=[
            Route("/", page),
            Route("/smiles", create, methods=["POST"]),
            Route("/smiles/{id}", state, name="state"),
            Route("/smiles/{id}/result", result),
            Route("/smiles/{id}/events", events),
        ],
        middleware=[Middleware(Guarded)],
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )


app = create_app()
