"""A web service in twenty lines: it takes a portrait and answers with the smile.

    YOUCAM_API_KEY=... uvicorn examples.fastapi_app:app
    curl --data-binary @selfie.jpg http://127.0.0.1:8000/smile > smiling.jpg

For real visitors see `webapp.py`: its pages do not wait, and a restart continues them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, cast

from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response

from perfect_async import Client, JobRefused, PerfectError, Smile


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Client() as app.state.client:  # one for all requests: they share the key's window
        yield


def get_client(request: Request) -> Client:
    return cast("Client", request.app.state.client)


app = FastAPI(lifespan=lifespan)


@app.post("/smile")
async def smile(
    portrait: Annotated[bytes, Body(media_type="image/jpeg", max_length=10 * 1024 * 1024)],
    client: Annotated[Client, Depends(get_client)],
) -> Response:
    try:
        result = await client.run(Smile(portrait), timeout=60)
    except JobRefused as error:
        raise HTTPException(422, error.message) from error
    except PerfectError as error:
        raise HTTPException(502, error.message) from error
    data = await result.images[0].read()
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"  # the vendor sends either
    return Response(data, media_type=f"image/{kind}")
