"""/livez, /readyz and /metrics, and whatever else a service serves over HTTP, in a thread of its own.

Liveness says only that the poll loop moves: a broker or a database that is away is no reason to restart.
"""

import threading
from collections.abc import Callable, Sequence

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

Check = Callable[[], str]  # "" is well; anything else says what is not


class HttpServer:
    def __init__(self, host: str, port: int, live: Check, ready: Check, routes: Sequence[BaseRoute] = ()) -> None:
        def answer(check: Check) -> Callable[[Request], Response]:
            def endpoint(_request: Request) -> Response:
                fault = check()
                return PlainTextResponse((fault or "ok") + "\n", 503 if fault else 200)

            return endpoint

        def show_metrics(_request: Request) -> Response:
            return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

        app = Starlette(
            routes=[
                Route("/livez", answer(live)),
                Route("/readyz", answer(ready)),
                Route("/metrics", show_metrics),
                *routes,
            ]
        )
        self._server = uvicorn.Server(
            uvicorn.Config(app, host, port, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        )
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> int:
        """Serve; returns the port. Raises OSError where it is taken."""
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise OSError(f"cannot listen on {self._server.config.host}:{self._server.config.port}")
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(6)
