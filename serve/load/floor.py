"""A server that does nothing: what the load generator itself costs shows against it.

It reads requests with a Content-Length and answers 200 with as many bytes as it was told.
`python -m mmf_deploy.serve.load.floor 192`
"""

from __future__ import annotations

import asyncio
import re
import sys

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class _Nothing(asyncio.Protocol):
    def __init__(self, reply: bytes) -> None:
        self._reply, self._read = reply, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        while b"\r\n\r\n" in self._read:
            head, _, rest = self._read.partition(b"\r\n\r\n")
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(rest) < length:
                return
            self._read = rest[length:]
            self._transport.write(self._reply)


async def _serve(size: int) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/x-npy\r\nContent-Length: {size}\r\n\r\n"
    reply = head.encode() + bytes(size)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Nothing(reply), "127.0.0.1", 0)
    print(f"nothing on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
