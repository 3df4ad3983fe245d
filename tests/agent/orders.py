"""What the programs that hold agents have in common: they listen, and carry out what each connection orders.

running_agent.py is the other end.
"""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

LINE_BYTES = 32 * 1024 * 1024
"""Of an order, or of an event that was seen."""


async def carry_out(port_file: Path, kinds: Mapping[str, Callable[..., Awaitable[None]]]) -> None:
    """For ever: a connection begins with a line that says of which kind its order is, and with what; when it
    ends, so does what it stands for."""
    # As LiveKit Agents does before it forks for its jobs: else each full collection looks through all
    # that was imported, and stops every agent of this process for a quarter of a second.
    gc.collect()
    gc.freeze()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order = json.loads(await reader.readline())
        try:
            await kinds[order.pop("order")]((reader, writer), **order)
        finally:
            # An error is logged by asyncio; who gave the order reads the end, and shows the log.
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=LINE_BYTES)
    # Whoever waits for the file reads a whole number in it: it appears by a rename.
    new = port_file.with_suffix(".new")
    new.write_text(str(server.sockets[0].getsockname()[1]))
    new.replace(port_file)
    await server.serve_forever()


def tell(connection: Connection, **event: Any) -> None:
    connection[1].write(json.dumps(event).encode() + b"\n")
