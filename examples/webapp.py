"""A web app that makes its visitors' portraits smile.

    YOUCAM_API_KEY=... uvicorn --no-access-log --timeout-graceful-shutdown 5 examples.webapp:app
    curl -i -H 'Content-Type: image/jpeg' --data-binary @selfie.jpg http://127.0.0.1:8000/smiles

- A job belongs to the app, not to a request: a visitor who comes back finds the result. After a
  crash the next start finishes the running jobs from the journal.
- With YOUCAM_WEBHOOK_SECRET the app accepts the vendor's notifications at /webhook.
- An upload is kept in memory only, until its job has ended. A result is on the disk for an hour, in
  SMILES_FOLDER, under an id that cannot be guessed; the vendor's copies are deleted. Keep the
  access log off: it would contain the ids.
- There is no login: put yours in front. Run one process, since the orders are in its memory and a
  journal belongs to one process.
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

from examples.webapp_orders import Order, Orders, TooManyUploads
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
MAX_UNITS = 1000.0  # units that visitors may cost until the app is restarted
UPLOAD_TIMEOUT = 120.0  # seconds for an upload, which occupies memory
QUICK = 0.5  # seconds to wait for an early failure before answering 202
STREAM_SECONDS = 30  # seconds after which a browser reopens its event stream


def status_of(error: PerfectError) -> HTTPStatus:
    match error:
        case JobRefused() | TaskFailed():  # PictureRefused too; most often no face
            return HTTPStatus.UNPROCESSABLE_ENTITY
        case UnitsExhausted() if not isinstance(error, CeilingReached):
            return HTTPStatus.PAYMENT_REQUIRED  # your balance
        case NotSaved():
            return HTTPStatus.INTERNAL_SERVER_ERROR  # your disk
        case TaskError() | RequestRefused() | BadAnswer():
            return HTTPStatus.BAD_GATEWAY
        case _:
            return HTTPStatus.SERVICE_UNAVAILABLE


def as_json(orders: Orders, order: Order) -> dict[str, object]:
    """Return the state of an order; the reason of a failure only where it is the picture."""
    if order.error is not None:
        ours = status_of(order.error) != HTTPStatus.UNPROCESSABLE_ENTITY
        message = None if ours else order.error.message
        name = type(order.error).__name__
        return {"id": order.id, "state": "failed", "error": name, "message": message}
    if order.ended.is_set():
        return {"id": order.id, "state": "done"}
    ahead = orders.ahead(order)
    return {"id": order.id, "state": "running" if ahead is None else "waiting", "ahead": ahead}


def find_order(request: Request) -> tuple[Orders, Order]:
    orders: Orders = request.app.state.orders
    if (order := orders.find(request.path_params["id"])) is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return orders, order


async def create(request: Request) -> Response:
    # Forms cannot send such a type, so another site's page cannot upload in a visitor's name; and
    # a body that is no form has no file name.
    if not request.headers.get("content-type", "").startswith("image/"):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "That is no picture.")
    orders: Orders = request.app.state.orders
    try:
        with orders.reserve() as order:
            with anyio.fail_after(UPLOAD_TIMEOUT):
                content = await read_body(request)
    except TooManyUploads:
        retry = {"Retry-After": "30"}
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many at once.", retry) from None
    except TimeoutError:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "It took too long.") from None
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # the visitor has gone
    orders.start(order, content)
    with anyio.move_on_after(QUICK):
        await order.ended.wait()
    if order.error is not None:
        await orders.delete(order)
        return JSONResponse(as_json(orders, order), status_of(order.error))
    location = {"Location": str(request.app.url_path_for("state", id=order.id))}
    return JSONResponse(as_json(orders, order), HTTPStatus.ACCEPTED, location)


async def read_body(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > Smile.largest:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "It is over 10 MB.")
    return bytes(content)


async def state(request: Request) -> Response:
    return JSONResponse(as_json(*find_order(request)))


async def result(request: Request) -> Response:
    orders, order = find_order(request)
    if order.error is not None:
        return JSONResponse(as_json(orders, order), status_of(order.error))
    if order.file is None:
        raise HTTPException(HTTPStatus.CONFLICT, "It is not done yet.")
    content = await anyio.Path(order.file).read_bytes()
    return Response(content, media_type=mimetypes.guess_type(order.file)[0])


async def events(request: Request) -> Response:
    return StreamingResponse(event_stream(*find_order(request)), media_type="text/event-stream")


async def event_stream(orders: Orders, order: Order) -> AsyncIterator[str]:
    """Yield an event at each change, and a comment every second, so that no proxy times out."""
    last = None
    for _ in range(STREAM_SECONDS):
        state = as_json(orders, order)
        yield ":\n\n" if state == last else f"data: {json.dumps(state)}\n\n"
        if state["state"] in {"done", "failed"}:
            return
        last = state
        with anyio.move_on_after(1.0):
            await order.ended.wait()


PAGE = Path(__file__).with_suffix(".html").read_text("utf-8")


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE)


def source_policy(tag: str) -> str:
    """Return the policy that allows the text of the page's one `tag` and no other."""
    [text] = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; {source_policy('script')}; "
    f"{source_policy('style')}; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",  # faces, and the ids that give access to them
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SecurityHeaders:
    """Middleware that sets HEADERS on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    content = {"error": HTTPStatus(error.status_code).phrase, "message": error.detail}
    return JSONResponse(content, error.status_code, error.headers)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await anyio.Path(FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
    async with anyio.create_task_group() as group:
        # Closing goes on polling running tasks for 30 s: let the process manager wait that long.
        async with Client(journal=FOLDER / "journal", max_units=MAX_UNITS) as client:
            app.state.orders = Orders(client, group, FOLDER / "results")
            if os.environ.get("YOUCAM_WEBHOOK_SECRET"):
                WebhookApp(client.webhooks).add_to(app, "/webhook")
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
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )


app = create_app()
