"""`make demo ES=1`: the demo with a real Elasticsearch, set up by `dsobs logs setup`.

Arguments are those of `dsobs demo`.
"""

import asyncio
import os
import sys

from dsobs.demo_logs import PASSWORD
from tests.real.elasticsearch import ADMIN, Elasticsearch


async def main() -> int:
    """The demo's exit status."""
    print("starting a real Elasticsearch (half a minute)", flush=True)
    async with Elasticsearch() as server:
        user, password = ADMIN
        environ = {**os.environ, PASSWORD: password}
        given = {"urls": server.url, "user": user, "password": f"env:{PASSWORD}"}
        flags = [word for name, value in given.items() for word in ("--set", f"logs.elasticsearch.{name}={value}")]
        print("$ dsobs logs setup", flush=True)
        status = await _dsobs(environ, "logs", "setup", *flags)
        if status == 0:
            status = await _dsobs(environ, "demo", "--elasticsearch", server.url, "--user", user, *sys.argv[1:])
    return status


async def _dsobs(environ: dict[str, str], *words: str) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "dsobs.cli", *words, env=environ)
    return await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
