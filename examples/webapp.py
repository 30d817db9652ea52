"""A web app that awaits the client in a request handler.

    YOUCAM_API_KEY=... uvicorn examples.webapp:app
    curl -F picture=@selfie.jpg http://127.0.0.1:8000/smiles -o smiling.jpg

One client for the whole app, opened and closed with it: all requests share its window, and what
does not fit waits its turn. A browser that goes away loses no unit to expiry: the client
polls the task to its end, whoever asked for it. Several worker processes do not share a client:
give each `Client(limits=Limits().split(workers))`.

The result goes through a temporary folder. Starlette keeps an upload of more than 1 MB in a
temporary file while the request lasts. Both are gone afterwards.
"""

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import anyio
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfect_async import (
    Client,
    ClientClosed,
    JobRefused,
    PerfectError,
    RateLimited,
    ServiceUnavailable,
    Smile,
    TaskError,
    TaskFailed,
    Unauthorized,
    UnitsExhausted,
    WaitTimeout,
)

LARGEST = 10 * 1024 * 1024
FORM = 64 * 1024  # what a form may hold around its picture
PATIENCE = 120.0  # seconds; a proxy in front must wait longer than this

# The first that fits counts. What is not here is the vendor's doing: 502.
STATUSES: tuple[tuple[type[PerfectError], HTTPStatus], ...] = (
    (JobRefused, HTTPStatus.UNPROCESSABLE_ENTITY),  # PictureRefused too: nothing was sent
    (TaskFailed, HTTPStatus.UNPROCESSABLE_ENTITY),  # no face in it, most often
    (WaitTimeout, HTTPStatus.GATEWAY_TIMEOUT),  # the task goes on
    (UnitsExhausted, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unauthorized, HTTPStatus.SERVICE_UNAVAILABLE),
    (RateLimited, HTTPStatus.SERVICE_UNAVAILABLE),
    (ServiceUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (ClientClosed, HTTPStatus.SERVICE_UNAVAILABLE),
)


async def smile(request: Request) -> Response:
    picture = await uploaded(request)
    client: Client = request.app.state.client
    result = await client.run(Smile(picture), timeout=PATIENCE)
    async with anyio.TemporaryDirectory() as folder:
        [path] = await result.save(folder)
        content = await anyio.Path(path).read_bytes()
    return Response(content, media_type=mimetypes.guess_type(path.name)[0])


async def uploaded(request: Request) -> bytes:
    """The bytes of the form's field "picture"; refused by length before anything is read."""
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise HTTPException(HTTPStatus.LENGTH_REQUIRED)
    if int(length) > LARGEST + FORM:
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    async with request.form(max_files=1, max_fields=10) as form:
        field = form.get("picture")
        if not isinstance(field, UploadFile):
            raise HTTPException(HTTPStatus.BAD_REQUEST, "no file in the field 'picture'")
        return await field.read()


async def explain(_: Request, error: Exception) -> Response:
    status = HTTPStatus.BAD_GATEWAY
    for kind, fitting in STATUSES:
        if isinstance(error, kind):
            status = fitting
            break
    told = {"error": type(error).__name__}
    if status is HTTPStatus.UNPROCESSABLE_ENTITY:
        # Only here can whoever uploaded do something about it.
        told["message"] = str(error)
    if isinstance(error, TaskError) and error.task_id is not None:
        told["task_id"] = error.task_id
    return JSONResponse(told, status)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # Leaving keeps polling what still runs, for 30 s: let the process manager wait that long.
    async with Client() as client:
        app.state.client = client
        yield


app = Starlette(
    routes=[Route("/smiles", smile, methods=["POST"])],
    exception_handlers={PerfectError: explain},
    lifespan=lifespan,
)
