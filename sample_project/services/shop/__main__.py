"""``python -m shop``: GET /stock/ITEM, PUT /orders/ID with the item as the body."""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, HTTPServer

import psycopg

from shop.store import Store

PORT = 8000


class Handler(BaseHTTPRequestHandler):
    store: Store

    def do_GET(self) -> None:
        kind, _, item = self.path[1:].partition("/")
        if kind == "stock":
            self.answer(lambda: str(self.store.stock(item)))
        else:
            self.send(200, "healthy")

    def do_PUT(self) -> None:
        item = self.rfile.read(int(self.headers["Content-Length"])).decode()
        order = self.path.removeprefix("/orders/")
        self.answer(lambda: self.store.order(order, item) or "ordered")

    def answer(self, make) -> None:
        try:
            self.send(200, make())
        except psycopg.OperationalError as error:
            self.send(503, f"the database does not answer: {error}")

    def send(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Handler.store = Store(os.environ["DATABASE_URL"], os.environ["CACHE_URL"])
    with HTTPServer(("", PORT), Handler) as server:
        print(f"serving the shop on port {PORT}", flush=True)
        server.serve_forever()
