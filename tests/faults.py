"""S3 servers for tests: moto's, and a proxy before any server that injects the faults that storage must survive."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import urlsplit

import pytest
from boto3.session import Session
from botocore.loaders import Loader
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

CODES = {403: "AccessDenied", 411: "MissingContentLength", 500: "InternalError", 503: "ServiceUnavailable"}
LATE_S, TRICKLE_S = 2.0, 2.0
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "expect"}


class QuietMoto(MotoRequestHandler):
    """Keeps one line per request out of the tests' output."""

    def log(self, type: str, message: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def moto_server() -> Iterator[str]:
    """URL of an S3 server that lives in this process and forgets everything. It checks no signatures.

    One request at a time: moto looks for a key and stores it in two steps, and races are to have one winner.
    """
    moto, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: dict, start_response: Callable) -> list[bytes]:
        with lock:
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=QuietMoto)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    shared = Loader()  # else each client of each test spends most of its life on parsing the same JSON
    try:
        with mock.patch("botocore.session.create_loader", return_value=shared):
            yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_bucket(endpoint: str, bucket: str) -> None:
    """Create a bucket with the credentials of the environment."""
    client = Session().client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=bucket)
    client.close()


@contextmanager
def moto_bucket(bucket: str) -> Iterator[str]:
    """URL of a `moto_server` with this bucket, and credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        make_bucket(endpoint, bucket)
        yield endpoint


@dataclass
class Fault:
    """What happens to requests of `method` whose path contains `key`.

    kind: an HTTP status to answer; "drop" closes the connection before the server hears of it; "lose" lets the server
    act and closes the connection in place of its answer; "cut" breaks off in the middle of the answer's body; "accept"
    answers 200 and stores nothing; "page" answers with a web page; "stall" says nothing for LATE_S and closes; "late"
    lets the server act and says so after LATE_S; "twice" hands the request on two times; "short" hands on half of its
    body; "trickle" answers in eight pieces over TRICKLE_S; "skewed" refuses because the clocks differ by an hour.
    times: how often; None is for ever.
    """

    kind: int | str
    method: str | None = None
    key: str = ""
    times: int | None = None
    hits: int = 0


@dataclass
class FaultProxy:
    """A running proxy: its URL, the faults now in force, and the (method, path) of each request in order."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def inject(self, kind: int | str, method: str | None = None, key: str = "", times: int | None = None) -> Fault:
        """Add a fault; the first that fits a request acts."""
        fault = Fault(kind, method, key, times)
        self.faults.append(fault)
        return fault

    def take(self, method: str, path: str) -> int | str | None:
        """The fault of this request, counted."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                fits = fault.method in (None, method) and fault.key in path
                if fits and (fault.times is None or fault.hits < fault.times):
                    fault.hits += 1
                    return fault.kind
        return None


def handler(proxy: FaultProxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    """Forwards to `upstream`, unless a fault says otherwise."""
    host = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output quiet."""

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # the client under test hung up
                self.close_connection = True

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = proxy.take(self.command, self.path)
            if kind in ("drop", "stall"):
                time.sleep(LATE_S if kind == "stall" else 0)
                self.close_connection = True
            elif kind == "skewed":
                self.refuse(403, "RequestTimeTooSkewed")
            elif kind == "accept":
                self.answer(200, {"ETag": '"0"'}, b"")
            elif kind == "page":
                self.answer(200, {"Content-Type": "text/html"}, b"<html><p>Welcome<br></html>")
            elif isinstance(kind, int):
                self.refuse(kind, CODES[kind])
            else:
                if kind == "twice":
                    self.ask(body)
                self.forward(body[: len(body) // 2] if kind == "short" else body, kind)

        def refuse(self, status: int, code: str) -> None:
            error = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
            self.answer(status, {"Content-Type": "application/xml"}, error.encode())

        def ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
            """What the server answers to this request with this body."""
            connection = http.client.HTTPConnection(host, timeout=30)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_HEADERS}
                if "Content-Length" in headers:
                    headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                return response, response.read()
            finally:
                connection.close()

        def forward(self, body: bytes, kind: str | None) -> None:
            response, content = self.ask(body)
            if kind == "late":
                time.sleep(LATE_S)
            if kind == "lose":
                self.close_connection = True
                return
            length = response.headers.get("Content-Length") if self.command == "HEAD" else str(len(content))
            headers = {k: v for k, v in response.getheaders() if k.lower() not in HOP_HEADERS | {"content-length"}}
            if kind == "cut":
                content = content[: len(content) // 2]
                self.close_connection = True
            self.answer(response.status, headers, content, length, slowly=kind == "trickle")

        def answer(
            self, status: int, headers: dict[str, str], content: bytes, length: str | None = None, slowly: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            piece = -(-len(content) // 8) if slowly and content else max(len(content), 1)
            for start in range(0, len(content), piece):
                time.sleep(TRICKLE_S / 8 if slowly else 0)
                self.wfile.write(content[start : start + piece])
                self.wfile.flush()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = serve

    return Handler


class QuietServer(ThreadingHTTPServer):
    """Its connections' threads end with their connections; none outlives the server's close."""

    daemon_threads = True
    block_on_close = False


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy before the server at `upstream`, on a free loopback port."""
    proxy = FaultProxy("")
    server = QuietServer(("127.0.0.1", 0), handler(proxy, upstream))
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
