"""A real HTTP server that answers whatever it is told to, byte for byte; what a well-made server would never send."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass
class RawServer:
    """`answer`: the pieces for a request's path; each is sent by itself, `pause_seconds` apart. An endless iterator is sent
    until the other side has had enough."""

    answer: Callable[[str], Iterator[bytes]] = lambda _: iter(())
    pause_seconds: float = 0.0
    requests: list[tuple[str, bytes]] = field(default_factory=list)  # path, body
    heads: list[str] = field(default_factory=list)  # of the same requests
    sent_bytes: int = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
            path = head.split(" ")[1]
            self.heads.append(head)
            self.requests.append((path, await reader.readexactly(length)))
            for piece in self.answer(path):
                writer.write(piece)
                await writer.drain()
                self.sent_bytes += len(piece)
                await asyncio.sleep(self.pause_seconds)
        writer.close()


def http(status: int, body: bytes, *headers: tuple[str, str], length: int | None = None, chunked: bool = False) -> bytes:
    """A whole answer; `length` is what it claims to have."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers)]
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body) if length is None else length}")
    content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked and body else b"0\r\n\r\n" if chunked else body
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + content
