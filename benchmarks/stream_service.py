"""How many readers one service feeds at once, how long each waits, and what memory it takes.

    python benchmarks/stream_service.py [--documents 100000] [--repeats 3] [--readers 1 32 256] [--rows 25600]

Makes a home with three corpora and a mixture in a temporary folder and starts a service of it in a process of its
own. Then so many readers as ``--readers`` says ask at the same moment for their ranks of the mixture, by
connections that are open already, and read to the end: ``--rows`` rows in all. A reader does no more than count
bytes. Prints rows a second in sum, and milliseconds to the first chunk and to the end (median and 99th percentile
over the readers), each as median and range over the repeats; then the memory of the service.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from streams import make_mixtures

from mixwright.store import Store

_ACCEPT = {"JSON lines": "application/x-ndjson", "Arrow": "application/vnd.apache.arrow.stream"}


async def read_rank(port: int, query: str, headers: str, start: asyncio.Event) -> tuple[float, float, int]:
    """Seconds to the first chunk and to the end, and the bytes that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    await start.wait()
    began = time.perf_counter()
    request = f"GET /v1/mixtures/proportional/rows?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n"
    writer.write(request.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head[:20]:
        raise RuntimeError(head.decode())
    n_bytes, first = 0, 0.0
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        first = first or time.perf_counter() - began
        n_bytes += size
    writer.close()
    return first, time.perf_counter() - began, n_bytes


async def read_all(
    port: int, readers: int, rows: int, headers: str
) -> tuple[list[tuple[float, float, int]], float]:
    """What each of the readers measured, and the seconds until the last had its rows."""
    start = asyncio.Event()
    queries = [f"rank={rank}&world_size={readers}&count={rows // readers}" for rank in range(readers)]
    tasks = [asyncio.create_task(read_rank(port, query, headers, start)) for query in queries]
    await asyncio.sleep(0.2 + readers / 1000)
    began = time.perf_counter()
    start.set()
    measured = await asyncio.gather(*tasks)
    return measured, time.perf_counter() - began


def memory_of(pid: int, field: str) -> float:
    """MiB of a process: VmRSS now, or VmHWM at most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} [{low:{form}}–{high:{form}}]"


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(service: subprocess.Popen[str], port: int, arguments: argparse.Namespace) -> None:
    print(f"memory of the service before it is asked: {memory_of(service.pid, 'VmRSS'):,.0f} MiB\n")
    print("| rows as | readers | rows/s | first chunk, ms: median | p99 | whole, ms: median | p99 | MiB at most |")
    print("|---|---|---|---|---|---|---|---|")
    ways = [(name, f"Accept: {accept}\r\n") for name, accept in _ACCEPT.items()]
    ways.append(("JSON lines, zstd", f"Accept: {_ACCEPT['JSON lines']}\r\nAccept-Encoding: zstd\r\n"))
    for name, headers in ways:
        for readers in arguments.readers:
            asyncio.run(read_all(port, readers, arguments.rows, headers))
            columns: list[list[float]] = [[] for _ in range(5)]
            for _ in range(arguments.repeats):
                measured, seconds = asyncio.run(read_all(port, readers, arguments.rows, headers))
                columns[0].append(arguments.rows // readers * readers / seconds)
                for place, times in enumerate(zip(*measured, strict=True)):
                    if place < 2:
                        columns[1 + 2 * place].append(1000 * statistics.median(times))
                        columns[2 + 2 * place].append(1000 * percentile(times, 0.99))
            cells = " | ".join(map(spread, columns))
            print(f"| {name} | {readers} | {cells} | {memory_of(service.pid, 'VmHWM'):,.0f} |", flush=True)
    print(f"\nmemory of the service afterwards: {memory_of(service.pid, 'VmRSS'):,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--rows", type=int, default=25_600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        make_mixtures(Store(home), Path(folder), arguments.documents)
        command = [sys.executable, "-m", "mixwright", "serve", "--home", str(home), "--port", "0"]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if service.stdout is None:
            raise RuntimeError("the service has no output")
        try:
            port = int(service.stdout.readline().strip().rpartition(":")[2])
            measure(service, port, arguments)
        finally:
            service.terminate()
            service.wait()


if __name__ == "__main__":
    main()
