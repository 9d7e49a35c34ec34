"""A TCP proxy in front of the gateway that cuts its clients off after so many bytes."""

import asyncio
import contextlib
import socket
import struct

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST


class Cut:
    """Passes everything on until `after` says otherwise. `heads` are the heads of all requests that came, `cuts` counts the cuts."""

    def __init__(self, port):
        self._target = port
        self._server = None
        self._left = None  # bytes from the gateway until the cut
        self._reset = False
        self._happened = asyncio.Event()
        self._is_out = False
        self._open = set()
        self.heads = []
        self.cuts = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self._end(reset=True)

    def http(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def after(self, count, reset=True):
        """Lets `count` more bytes of the gateway through. Then the client's connection is reset, or ends, and nobody gets through until `mend`."""
        self._left, self._reset = count, reset
        self._happened.clear()
        if count == 0:
            self._cut()

    async def happened(self):
        await asyncio.wait_for(self._happened.wait(), 10)

    def mend(self):
        self._is_out = False

    def _cut(self):
        self.cuts += 1
        self._left, self._is_out = None, True
        self._end(self._reset)
        self._happened.set()

    def _end(self, reset):
        for client, upstream in self._open:
            close(client, reset)
            close(upstream, True)
        self._open.clear()

    async def _serve(self, reader, client):
        if self._is_out:
            close(client, True)
            return
        try:
            from_gateway, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the gateway is not there: neither are we
            close(client, True)
            return
        pair = (client, upstream)
        self._open.add(pair)
        up = asyncio.ensure_future(self._up(reader, upstream))
        with contextlib.suppress(OSError):
            await self._down(from_gateway, client, pair)
        up.cancel()
        self._open.discard(pair)
        for writer in pair:
            close(writer, False)

    async def _up(self, reader, upstream):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            upstream.write(head)
            while data := await reader.read(65536):
                upstream.write(data)
                await upstream.drain()
        close(upstream, False)

    async def _down(self, from_gateway, client, pair):
        while data := await from_gateway.read(65536):
            if pair not in self._open:
                return
            if self._left is not None:
                data = data[: self._left]
                self._left -= len(data)
            client.write(data)
            if self._left == 0:
                # What came before the cut arrives: a reset would overtake it.
                await client.drain()
                await asyncio.sleep(0.01)
                self._cut()
                return
            await client.drain()


def close(writer, reset):
    transport = writer.transport
    if reset and not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        transport.abort()
    else:
        writer.close()
