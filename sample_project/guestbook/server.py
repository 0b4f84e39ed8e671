"""The book over HTTP: GET / reads it, POST /NAME signs it with the body of the request."""

from __future__ import annotations

import json
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer

from guestbook import book

PORT = 8080


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, [asdict(signature) for signature in book.signatures()])

    def do_POST(self) -> None:
        words = self.rfile.read(int(self.headers["Content-Length"]))
        book.sign(self.path.removeprefix("/"), words.decode())
        self.answer(201, "thank you")

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


def serve() -> None:
    with HTTPServer(("127.0.0.1", PORT), Handler) as server:
        print(f"serving the guest book on port {PORT}", flush=True)
        server.serve_forever()
