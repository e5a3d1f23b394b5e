"""The routes."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from paceline.serve import answering, jobs, openapi, schema
from paceline.serve.failures import ApiError, refused
from paceline.serve.guard import json_response, on_api_error, on_http_error
from paceline.serve.server import Server


def routes() -> Starlette:
    """The application; its `state.server` is to be set. The guard goes in front of it."""
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", description),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", model),
            Route("/v1/chat/completions", partial(answering.answer, form=answering.CHAT), methods=["POST"]),
            Route("/v1/completions", partial(answering.answer, form=answering.COMPLETION), methods=["POST"]),
            Route("/v1/responses", partial(answering.answer, form=answering.RESPONSES), methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
        ],
        exception_handlers={ApiError: on_api_error, HTTPException: on_http_error},
    )
    app.router.redirect_slashes = False
    return app


def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


async def health(request: Request) -> Response:
    """200 where requests are taken, else 503; and what the engine of each model does."""
    server = _server(request)
    status = "draining" if server.draining else server.fleet.health()
    body = {"status": status, "models": server.fleet.states()}
    return json_response(body, 200 if status == "ok" else 503)


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    server = _server(request)
    content, kind = server.metrics.page(server.fleet.loads(), len(asyncio.all_tasks()))
    return Response(content, headers={"Content-Type": kind})


async def description(request: Request) -> Response:
    """The OpenAPI file."""
    return json_response(openapi.document(_server(request).fleet.names))


async def models(request: Request) -> Response:
    """The models that can be asked."""
    return json_response({"object": "list", "data": _server(request).fleet.listed()})


async def model(request: Request) -> Response:
    """One of them."""
    return json_response(_server(request).fleet.listed(request.path_params["model"])[0])


async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a conversation."""
    server = _server(request)
    wanted, warning = await server.read(request, schema.TokenizeRequest)
    _, (info, tokenizer) = await server.fleet.ready(wanted.model)
    if wanted.messages is not None and wanted.prompt is None:
        plain = jobs.chat_messages(wanted.messages)
        tokens = await server.aside(jobs.render, plain, tokenizer)
    elif wanted.prompt is not None and wanted.messages is None:
        tokens = await server.aside(tokenizer.encode, wanted.prompt)
    else:
        raise refused("give either prompt or messages", "prompt")
    return json_response(
        {"tokens": tokens, "count": len(tokens), "max_model_len": info.max_positions}, headers=warning
    )


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    server = _server(request)
    wanted, warning = await server.read(request, schema.DetokenizeRequest)
    _, (_, tokenizer) = await server.fleet.ready(wanted.model)
    last = tokenizer.vocab_size - 1
    for token in wanted.tokens:
        if not 0 <= token <= last:
            raise refused(f"token ids are 0 to {last}, got {token}", "tokens")
    text = await server.aside(tokenizer.decode, wanted.tokens)
    return json_response({"prompt": text}, headers=warning)
