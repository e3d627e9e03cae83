"""An OpenTelemetry collector that takes OTLP over HTTP, and remembers what came."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """What came to /v1/traces."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.bodies: list[bytes] = []
        self.requests: list[tuple[str, str]] = []
        self.peers: list[Any] = []

    @property
    def spans(self) -> list[dict[str, Any]]:
        found = []
        for body in list(self.bodies):
            for resource in json.loads(body)["resourceSpans"]:
                names = {
                    each["key"]: each["value"]["stringValue"] for each in resource["resource"]["attributes"]
                }
                for span in resource["scopeSpans"][0]["spans"]:
                    values = {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}
                    found.append(span | {"values": values, "role": names["dicom_ingest.role"]})
        return found


@contextmanager
def collecting(context: ssl.SSLContext | None = None) -> Iterator[Collector]:
    """Run a collector; with a context over https."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.requests.append((self.path, self.headers["Content-Type"]))
            collector.peers.append(self.connection.getpeercert() if context else None)
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        collector = Collector(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield collector
        server.shutdown()
