"""The local HTTP server of the viewer: one port, a random token in every address, requests of known hosts only.

It answers GET without side effects, and POST with JSON. What an address means is decided by a function of
``pages.py``; here are the protocol, its safety, and the requests that a page has given up.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from slideio_pipe.errors import ConfigError, SlideioPipeError

LOOPBACK = "127.0.0.1"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
PORTS_TRIED = 20
# Of all pages together; a browser opens six for each page, and asks one thing at a time in each.
MOST_CONNECTIONS = 48
MOST_BODY_BYTES = 4 << 20
# Nothing from other servers, no frames of others, no inline scripts.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Request:
    """What a page asks for: the path after the token, the values after "?", and JSON that was sent."""

    path: str
    query: dict[str, str]
    body: Any = None
    wanted: Callable[[], bool] = lambda: True  # whether the page still waits for the answer


@dataclass(frozen=True)
class Reply:
    """An answer."""

    content: bytes
    kind: str = "application/json"
    status: int = 200
    immutable: bool = False  # the address will never mean anything else

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Reply:
        """Return JSON; NaN is not allowed in it."""
        return cls(json.dumps(value, allow_nan=False).encode(), status=status)


Answer = Callable[[Request], Reply]


class ViewerServer(ThreadingHTTPServer):
    """Serves one viewer to the pages that have its token.

    Parameters
    ----------
    answer : callable
        Returns the ``Reply`` to a ``Request``; errors of the package become JSON with status 404 or 422.
    port : int
        Port; 0 is any free one. If it is in use, the next free one of twenty is used.
    hosts : sequence of str
        Names besides localhost under which the page may be opened, such as that of a JupyterHub.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Answer, port: int = 0, hosts: Sequence[str] = ()) -> None:
        self.answer, self.token = answer, secrets.token_urlsafe(18)
        self.hosts = frozenset(host.lower() for host in (*LOCAL_HOSTS, *hosts))
        self._connections: set[socket.socket] = set()
        super().__init__((LOOPBACK, port), _Handler, bind_and_activate=False)
        self._bind(port)
        # It looks for its end this often: `close` waits for it.
        serve = partial(self.serve_forever, poll_interval=0.05)
        self._thread = Thread(target=serve, name="slideio-viewer", daemon=True)

    def _bind(self, port: int) -> None:
        last: OSError | None = None
        for candidate in [port] if port == 0 else range(port, min(port + PORTS_TRIED, 65536)):
            try:
                self.server_address = (LOOPBACK, candidate)
                self.server_bind()
                self.server_activate()
                return
            except OSError as error:
                last = error
                self.socket.close()
                self.socket = socket.socket(self.address_family, self.socket_type)
        self.socket.close()
        reason = f"{{port={port}}} cannot be used ({last.strerror if last else 'not a port'})"
        raise ConfigError(reason, remedy="pass another {port=}, or {port=0} for any free one") from last

    @property
    def port(self) -> int:
        """The port that is used."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page, with its token."""
        return f"http://{LOOPBACK}:{self.port}/{self.token}/"

    def start(self) -> None:
        """Answer requests in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End; the port is free afterwards."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()
        for connection in list(self._connections):  # pages keep theirs open
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether a connection is answered; beyond the limit it is closed, and a browser tries again."""
        return len(self._connections) < MOST_CONNECTIONS

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection until it is closed."""
        self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.discard(request)

    def server_bind(self) -> None:
        """Bind without a name server: ``HTTPServer`` looks the host's name up, which can take seconds."""
        if os.name == "posix":  # on Windows it would share the port of another program
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = LOOPBACK, self.port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore pages that close their connection, which is usual."""


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    protocol_version = "HTTP/1.1"  # connections stay open
    server_version, sys_version = "slideio-pipe", ""
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True
    timeout = 600  # seconds: an idle connection ends

    def do_GET(self) -> None:
        self._answer(None)

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            self.close_connection = True  # the body is not read
            self._send(_problem(413, "the request is too large"))
            return
        if not self._own_origin() or self.headers.get_content_type() != "application/json":
            self.rfile.read(int(length))
            self._send(_problem(403, "requests of other pages are not answered"))
            return
        try:
            self._answer(json.loads(self.rfile.read(int(length))))
        except ValueError:
            self._send(_problem(400, "the request is no JSON"))

    def _answer(self, body: Any) -> None:
        if not self._known_host():
            self._send(_problem(403, "this name of the server is not known; start the viewer with --host NAME"))
            return
        parts = urlsplit(self.path)
        _, token, *rest = parts.path.split("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._send(_problem(404, "no viewer is here; use the whole link that was printed"))
            return
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = Request("/".join(rest), query, body, self._waiting)
        try:
            reply = self.server.answer(request)
        except SlideioPipeError as error:
            reply = _problem(404 if isinstance(error, FileNotFoundError) else 422, str(error))
        except Exception as error:  # a fault of ours: the page shows it, and the server goes on
            reply = _problem(500, f"{type(error).__name__}: {error}")
        self._send(reply)

    def _known_host(self) -> bool:
        return _host_of(self.headers.get("Host", "")) in self.server.hosts

    def _own_origin(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or _host_of(urlsplit(origin).netloc) in self.server.hosts

    def _waiting(self) -> bool:
        """Return whether the connection is still open: a page closes it when it no longer shows the tile."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return not readable or bool(self.connection.recv(1, socket.MSG_PEEK))
        except (OSError, ValueError):
            return False

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.content)))
        lasting = reply.immutable and reply.status == 200
        self.send_header("Cache-Control", "private, max-age=31536000, immutable" if lasting else "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if reply.kind.startswith("text/html"):
            self.send_header("Content-Security-Policy", CONTENT_POLICY)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Print nothing: addresses have the token."""


def _problem(status: int, text: str) -> Reply:
    return Reply.json({"problem": text}, status)


def _host_of(host: str) -> str:
    """Return the name without its port.

    >>> _host_of("localhost:8000"), _host_of("[::1]:8000"), _host_of("hub.org")
    ('localhost', '::1', 'hub.org')
    """
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
