"""forward.py FD HOST PORT: what connects to the inherited listening socket FD is connected with HOST:PORT.

The socket is of the network namespace that it was made in, this process of the one where HOST is.
"""

import asyncio
import contextlib
import socket
import sys


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _main(descriptor: int, host: str, port: int) -> None:
    connected: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        pumps = [asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(there, writer))]
        # Where one side has ended, the other one learns it at once: a client that waits would never ask again.
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for end in (back, writer):
            end.close()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Kept: the loop itself keeps no task, and one that nobody keeps can go in the middle.
        task = asyncio.create_task(forward(reader, writer))
        connected.add(task)
        task.add_done_callback(connected.discard)

    server = await asyncio.start_server(take, sock=socket.socket(fileno=descriptor))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
