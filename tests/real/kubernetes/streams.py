"""Clients that stream completions from a service and count, each for itself, what came whole."""

import http.client
import json
import random
import threading
import time
from typing import Self

DEADLINE_SECONDS = 60.0


class Streams:
    """So many clients, as a context: each opens a connection, asks, reads to the end, and begins anew."""

    def __init__(self, address: str, number: int, *, tokens: tuple[int, int] = (20, 150)) -> None:
        """`address`: of the service, host:port; `tokens`: of an answer, least and most."""
        self._address = address
        self._tokens = tokens
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"client {index}") for index in range(number)]
        self.whole = 0
        """Answers that came to their end."""
        self.lost: list[str] = []
        """Of those that did not, when and why."""

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._ask()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.lost.append(f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}")
                self._end.wait(0.2)
            else:
                self.whole += 1

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=DEADLINE_SECONDS)
        try:
            asked = random.randint(*self._tokens)
            body = {"model": "deepseek-r1-7b", "prompt": "why", "max_tokens": asked, "stream": True}
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        got = text.count('"text"')
        if answer.status != 200 or not text.rstrip().endswith("data: [DONE]") or got < asked:
            raise ValueError(f"status {answer.status}, {got} of {asked} tokens, and then: {text[-200:]!r}")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
