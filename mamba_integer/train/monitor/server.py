"""Serves the page and the runs' figures to a browser on this machine, and to nobody else.

It gives out its own three files and what it has read of the runs; a request names no path. Requests whose Host header is not this machine are refused, so
that a foreign page cannot read the figures by letting its own name point here (DNS rebinding).
"""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mamba_integer.errors import ArgumentError
from mamba_integer.train.monitor.runs import Runs

_ASSETS = {
    "/": ("monitor.html", "text/html; charset=utf-8"),
    "/monitor.css": ("monitor.css", "text/css; charset=utf-8"),
    "/monitor.js": ("monitor.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOCAL = {"127.0.0.1", "localhost", "::1"}


class Handler(BaseHTTPRequestHandler):
    server: MonitorServer
    server_version = "mamba-integer"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        try:
            host = urlsplit("//" + self.headers.get("Host", "")).hostname
            url = urlsplit(self.path)
            query = parse_qs(url.query)
        except ValueError:
            return self._send(HTTPStatus.BAD_REQUEST, "text/plain", b"bad request\n")
        if host not in _LOCAL:
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", b"only for this machine: use http://127.0.0.1\n")
        if url.path in _ASSETS:
            name, kind = _ASSETS[url.path]
            return self._send(HTTPStatus.OK, kind, self.server.assets[name])
        runs = self.server.runs.all()
        if url.path == "/api/runs":
            return self._json({"runs": [run.overview() for run in runs.values()]})
        run = runs.get(query.get("name", [""])[0])
        if url.path == "/api/run" and run is not None:
            only = tuple(query.get("only", [""])[0].split(",")) if "only" in query else ()
            return self._json(run.snapshot(query.get("cursor", [""])[0], only))
        return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")

    do_HEAD = do_GET  # noqa: N815

    def _json(self, value: Any) -> None:
        # ASCII: whatever strings the runs hold, no character is special to a reader of JSON
        self._send(HTTPStatus.OK, "application/json", json.dumps(value, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not worth a line each."""


class MonitorServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1. port 0: any free one. Raises ArgumentError if it is taken."""

    daemon_threads = True

    def __init__(self, runs: Runs, port: int) -> None:
        self.runs = runs
        folder = resources.files("mamba_integer.train.monitor")
        self.assets = {name: folder.joinpath(name).read_bytes() for name, _ in _ASSETS.values()}
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ArgumentError(f"cannot listen on port {port}: {error.strerror}; give another --port") from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""
