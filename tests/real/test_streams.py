"""What the clients of tests of the cluster count, and that they end. Not marked real."""

import asyncio
import json
import re
import threading

from tests.real.kubernetes.streams import Streams

HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


async def test_answer_that_is_cut_off_is_lost_and_nothing_goes_on_afterwards() -> None:
    answers, enough = 0, threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        answers += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)content-length: (\d+)", head)
        assert length is not None
        asked = json.loads(await reader.readexactly(int(length[1])))["max_tokens"]
        writer.write(HEADERS + b'data: {"text": "a"}\n\n' * asked)
        # The second is cut off where all its tokens have come, but not its end.
        writer.write(b"" if answers == 2 else b"data: [DONE]\n\n")
        writer.close()
        if answers == 4:
            enough.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        streams = Streams(f"{host}:{port}", 1, tokens=(3, 3))

        def watch() -> None:
            with streams:
                assert enough.wait(10.0)

        await asyncio.to_thread(watch)
    assert streams.whole == answers - 1
    (lost,) = streams.lost
    assert "status 200, 3 of 3 tokens, and then: " in lost
    assert [each for each in threading.enumerate() if each.name == "streams"] == []
