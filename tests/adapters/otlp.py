"""A receiver of traces: a process that speaks OTLP, protobuf over HTTP, and keeps what it was sent; and how to read it.

python tests/adapters/otlp.py DIRECTORY
"""

import gzip
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came over the wire."""

    id: str
    trace: str
    parent: str
    name: str
    kind: str
    links: tuple[str, ...]
    attributes: dict[str, Any]
    service: str
    scope: str
    schema: str
    failed: bool


class Receiver:
    """What the receiver was sent so far."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self.endpoint = f"http://127.0.0.1:{port}/v1/traces"

    def spans(self) -> Sequence[ReceivedSpan]:
        return [
            span
            for path in sorted(self._directory.glob("*.pb"))
            for span in parsed(ExportTraceServiceRequest.FromString(path.read_bytes()))
        ]


def parsed(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource in request.resource_spans:
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    span.span_id.hex(),
                    span.trace_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    Wire.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    tuple(link.span_id.hex() for link in span.links),
                    {
                        one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value")
                        for one in span.attributes
                    },
                    about["service.name"],
                    scope.scope.name,
                    scope.schema_url,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                )


@contextmanager
def receiving(directory: Path) -> Iterator[Receiver]:
    """Run a receiver beside the block."""
    directory.mkdir()
    with subprocess.Popen([sys.executable, __file__, directory], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Receiver(directory, int(process.stdout.readline()))
        finally:
            process.kill()


class _Handler(BaseHTTPRequestHandler):
    directory: Path
    count = 0
    lock = Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
            self.send_error(415)
            return
        ExportTraceServiceRequest.FromString(body)  # refuse what cannot be read
        with self.lock:
            _Handler.count += 1
            unfinished = self.directory / f"{self.count:06}.tmp"
        unfinished.write_bytes(body)
        unfinished.rename(unfinished.with_suffix(".pb"))
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None: ...


if __name__ == "__main__":
    _Handler.directory = Path(sys.argv[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()
