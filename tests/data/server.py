"""A small HTTP server that misbehaves on demand."""

import contextlib
import gzip
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOSTILE = ("endless", "endless chunks", "claims", "encoded", "trickle", "redirect")


@dataclass
class Site:
    """What is served, and what was asked for.

    A plan is a list of behaviours of one path, one a request, the last one for ever:

    - "ok": the file, or the part of it that Range asks for;
    - "ignore range": always the whole file;
    - ("drop", n): the connection breaks after n bytes of the body;
    - ("truncate", n): a complete answer that holds the first n bytes only;
    - ("unsized drop", n): n bytes without a Content-Length, then the end;
    - "corrupt": the file with one bit turned;
    - "page": a web page with status 200, as a captive portal sends it;
    - "wrong range": 206 with a part that was not asked for;
    - "hang" and "slow": nothing for a second, or a third of one, and then the file;
    - "endless", "endless chunks": a body of zeros without end, to the client's loss of patience;
    - ("claims", n): a Content-Length of n, whatever there is;
    - "encoded": the file packed once more, as Content-Encoding says;
    - ("trickle", part): one byte of the "head", of the "body" or of the "chunks" every 20 ms, for two seconds;
    - ("redirect", url): 302 to there, with an endless body;
    - a number: that status.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    plans: dict[str, list] = field(default_factory=dict)
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)  # nobody asks any more
    sent: int = 0  # bytes of endless bodies

    def asked(self, path: str) -> list[tuple[str | None, int]]:
        """The Range and the status of each request for a path."""
        return [(wanted, status) for p, wanted, status in self.requests if p == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5  # seconds, so that no thread waits for ever for a client's next request
    site: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site, path = self.site, self.path
        plan = site.plans.get(path, ["ok"])
        how = plan.pop(0) if len(plan) > 1 else plan[0]
        data = site.files.get(path)
        if how in ("hang", "slow"):
            site.over.wait(1.0 if how == "hang" else 0.3)
        status = how if isinstance(how, int) else 200 if data is not None else 404
        wanted = self.headers.get("Range")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if status != 200:
                self.answer(status, b"no")
                return
            if how in HOSTILE or (isinstance(how, tuple) and how[0] in HOSTILE):
                self.site.requests.append((path, self.headers.get("Range"), status))
                self.close_connection = True
                self.be_hostile(*(how if isinstance(how, tuple) else (how, None)), data)
                return
            if how == "page":
                self.answer(200, b"<!DOCTYPE html><html>Please log in</html>")
                return
            if how == "corrupt":
                data = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
            start = 0
            if wanted and how not in ("ignore range", "page"):
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                if start >= len(data):
                    self.answer(416, b"")
                    return
                if how == "wrong range":
                    start = 1
                status = 206
            body = data[start:]
            headers = (
                {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
                if status == 206
                else {}
            )
            if isinstance(how, tuple):
                kind, n = how
                if kind == "truncate":
                    body = body[:n]
                self.answer(
                    status, body[:n], headers, length=None if "unsized" in kind else len(body)
                )
            else:
                self.answer(status, body, headers)

    def be_hostile(self, kind: str, detail: object, data: bytes) -> None:
        head = {
            "endless": "200 OK\r\nContent-Type: x/y",
            "endless chunks": "200 OK\r\nTransfer-Encoding: chunked",
            "claims": f"200 OK\r\nContent-Length: {detail}",
            "encoded": "200 OK\r\nContent-Encoding: gzip",
            "trickle": f"200 OK\r\nContent-Length: {len(data)}",
            "redirect": f"302 Found\r\nLocation: {detail}",
        }[kind]
        if (kind, detail) == ("trickle", "chunks"):
            head = "200 OK\r\nTransfer-Encoding: chunked"
        whole = f"HTTP/1.1 {head}\r\nConnection: close\r\n\r\n".encode()
        if (kind, detail) == ("trickle", "head"):
            self.trickle(whole[:-2] + b"X-Long: " + b"x" * 1000)
            return
        self.wfile.write(whole)
        if kind == "trickle":
            self.trickle(b"1" * 1000 if detail == "chunks" else data)
        elif kind == "encoded":
            self.wfile.write(gzip.compress(data))
        elif kind == "claims":
            self.wfile.write(data)
        else:
            piece = bytes(1 << 16)
            if kind == "endless chunks":
                piece = b"10000\r\n" + piece + b"\r\n"
            until = time.monotonic() + 20
            while time.monotonic() < until:
                self.wfile.write(piece)
                self.site.sent += len(piece)

    def trickle(self, data: bytes) -> None:
        for byte in data[:100]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.site.over.wait(0.02):
                return

    def answer(
        self, status: int, body: bytes, headers: dict | None = None, length: int | None = -1
    ) -> None:
        self.site.requests.append((self.path, self.headers.get("Range"), status))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    """Serves on a free port of this machine until the block ends."""
    site = Site()
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield site
    finally:
        site.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
