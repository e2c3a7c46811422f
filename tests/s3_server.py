"""An S3 server on loopback, of moto, in a process of its own, which can be made to fail.

Faults are orders about the next requests, given by ``S3Server.order``: the process that runs the server cannot be
reached in any other way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

_ORDERS = "/-/orders"
_BUCKET = "mixwright-tests"


class S3Server:
    """A running server with one bucket."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        request = urllib.request.Request(f"{self.endpoint}/{_BUCKET}", method="PUT")
        # By the service in it the server sees that S3 is meant.
        request.add_header(
            "Authorization", "AWS4-HMAC-SHA256 Credential=nobody/20240101/us-east-1/s3/aws4_request"
        )
        urllib.request.urlopen(request).close()
        self._numbers = count()

    def new_url(self) -> str:
        """Where a store can be that nobody has used."""
        return f"s3://{_BUCKET}/tests/{next(self._numbers)}"

    def order(self, **order: Any) -> None:
        """Do something to later requests that match ``method`` and ``path`` (a part of it), ``times`` times.

        ``skip``: so many matching requests are let through first. ``do``: ``fail`` answers 503 without doing it;
        ``lose`` does it and answers 503; ``damage`` flips a bit of the answer; ``ignore_conditions`` forgets If-*
        headers; ``wait`` does it after ``seconds``.
        """
        self._post({"times": 1, "skip": 0, "method": "", "path": "", **order})

    def forget_orders(self) -> None:
        self._post(None)

    def requests(self) -> list[str]:
        """METHOD path of every request since this was asked last."""
        with urllib.request.urlopen(self.endpoint + _ORDERS) as answer:
            found: list[str] = json.load(answer)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _post(self, order: Any) -> None:
        data = json.dumps(order).encode()
        urllib.request.urlopen(urllib.request.Request(self.endpoint + _ORDERS, data, method="POST")).close()


class _Faults:
    """The application behind it, with what the orders want."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._orders: list[dict[str, Any]] = []
        self._log: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == _ORDERS:
            return self._take_order(environ, start)
        query = environ.get("QUERY_STRING", "")
        with self._lock:
            self._log.append(f"{method} {path}")
            order = self._due(method, f"{path}?{query}" if query else path)
        do = order["do"] if order else ""
        if do == "wait":
            time.sleep(order["seconds"])
        if do == "fail":
            return _unavailable(start)
        if do == "ignore_conditions":
            for name in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
                environ.pop(name, None)
        if do not in ("lose", "damage"):
            return self._application(environ, start)
        answer: list[Any] = []
        body = b"".join(self._application(environ, lambda *arguments: answer.append(arguments)))
        if do == "damage" and body:
            start(*answer[0][:2])
            return [bytes([body[0] ^ 1]) + body[1:]]
        return _unavailable(start)

    def _due(self, method: str, path: str) -> Any:
        for order in self._orders:
            if order["method"] in ("", method) and order["path"] in path and order["times"] > 0:
                if order["skip"] > 0:
                    order["skip"] -= 1
                    continue
                order["times"] -= 1
                return order
        return None

    def _take_order(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        with self._lock:
            if environ["REQUEST_METHOD"] == "POST":
                order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                self._orders = [] if order is None else [*self._orders, order]
                found: list[str] = []
            else:
                found, self._log = self._log, []
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(found).encode()]


def _unavailable(start: Any) -> Iterable[bytes]:
    start("503 Slow Down", [("Content-Type", "application/xml")])
    return [b"<Error><Code>SlowDown</Code></Error>"]


def _main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    server = make_server("127.0.0.1", 0, _Faults(DomainDispatcherApplication(create_backend_app)), threaded=True)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    # The folder of the tests has modules that are named like others.
    sys.path = [each for each in sys.path if Path(each or ".").resolve() != Path(__file__).parent]
    _main()
