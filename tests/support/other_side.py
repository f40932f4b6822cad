"""A real HTTP server to be called by the probe. It acts once for each idempotency key, and fails as its subjects ask."""

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    subject: str
    key: str  # Idempotency-Key
    request_id: str


class OtherSide:
    """A subject which begins with `cut-` has its connection cut after the request was read, `error-` is HTTP 500, `hang-` is
    answered at `release()`, `slow-` after 0.3 s, `late-` after 1.7 s; all others at once. What is asked again after `mend()` is
    answered well."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.acted: dict[str, str] = {}
        self.open = 0
        self.most_open = 0
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._mended = False
        other = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                other.answer(self)

            def log_message(self, *_arguments: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/ask"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        subject = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))["subject"]
        key = handler.headers["Idempotency-Key"]
        with self._lock:
            self.requests.append(Request(subject, key, handler.headers["X-Request-Id"]))
            self.acted[key] = subject
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        behave = "" if self._mended else subject.partition("-")[0]
        if behave == "hang":
            self._released.wait(60)
        if behave in ("slow", "late"):
            self._released.wait(0.3 if behave == "slow" else 1.7)
        with self._lock:
            self.open -= 1
        if behave == "cut":
            handler.close_connection = True
            return
        body = b"answered"
        try:
            handler.send_response(500 if behave == "error" else 200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        except ConnectionError:
            return

    def release(self) -> None:
        self._released.set()

    def mend(self) -> None:
        self._mended = True

    def asked(self, subject: str) -> list[Request]:
        return [request for request in self.requests if request.subject == subject]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
