"""A registry that does what a test tells it: faults, tokens, redirects, byte ranges.

with Scripted() as server:
    server.add("library/app", "latest", making.image())
    server.on("GET .*/blobs/", cut(100), status(500))   # the first two answers; then as usual
"""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.oci.making import digest


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def authorization(self):
        return self.headers.get("Authorization", "")

    def __str__(self):
        return f"{self.method} {self.path}"


class Scripted:
    """One server on a loopback port. `host` is what a reference begins with.

    With `auth` = "basic" or "token" it wants `user` and `password`; `realm` is where tokens are
    given (its own /token), and tokens die at `expire()`.
    """

    def __init__(self, *, address="127.0.0.1", context=None, auth="", realm=""):
        self.blobs, self.manifests, self.log, self.faults = {}, {}, [], []
        self.auth, self.tokens, self.user, self.password = auth, set(), "me", "geheim"
        self.anonymous, self.identity, self.lifetime, self.etag = False, "", None, '"etag-1"'
        self.ranges = True
        self.uploads = {}
        self.released = threading.Event()
        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None
        self._server.scripted = self
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        name = "localhost" if context is not None else address
        self.host = f"{name}:{self._server.server_address[1]}"
        self.base = f"{'https' if context else 'http'}://{self.host}"
        self.realm = realm or f"{self.base}/token"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repository, tag, made):
        """Serve a document under a tag, with all below it by digest."""
        self.blobs.update(made.blobs)
        for each in (made, *made.manifests):
            self.manifests[repository, each.digest] = (each.media_type, each.raw)
        self.manifests[repository, tag] = (made.media_type, made.raw)

    def on(self, pattern, *actions):
        """What the next requests that match `METHOD path` get, one action each."""
        self.faults.append((re.compile(pattern), list(actions)))

    def requests(self, pattern=""):
        """What was asked, as far as it matches `METHOD path`."""
        return [request for request in self.log if re.search(pattern, str(request))]

    def expire(self):
        """No token that was given is good any more."""
        self.tokens.clear()

    def action(self, line):
        for pattern, actions in self.faults:
            if actions and pattern.search(line):
                return actions.pop(0)
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, format, *args):
        pass

    def respond(self):
        self.scripted = self.server.scripted
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        self.request_seen = Request(self.command, self.path, dict(self.headers), body)
        self.scripted.log.append(self.request_seen)
        try:
            if act := self.scripted.action(str(self.request_seen)):
                act(self)
            else:
                self.usual()
            self.wfile.flush()
        except OSError:  # the client went away
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = respond

    def give(self, status, body=b"", headers=None):
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def usual(self):
        path = urlsplit(self.path).path
        if path == "/token":
            self.token()
        elif not self.is_allowed():
            self.challenge()
        elif match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            self.manifest(*match.groups())
        elif match := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[^/]+)", path):
            self.blob(match[2])
        elif match := re.fullmatch(r"/v2/(.+)/blobs/uploads/(.*)", path):
            self.upload(*match.groups())
        else:
            self.give(200 if path == "/v2/" else 404)

    def is_allowed(self):
        scripted, sent = self.scripted, self.headers.get("Authorization", "")
        if scripted.auth == "basic":
            return sent == self.basic()
        if scripted.auth == "token":
            return sent.removeprefix("Bearer ") in scripted.tokens
        return True

    def basic(self):
        pair = f"{self.scripted.user}:{self.scripted.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    def challenge(self):
        realm, scope = self.scripted.realm, "repository:x:pull,push"
        text = f'Bearer realm="{realm}",service="scripted",scope="{scope}"'
        if self.scripted.auth == "basic":
            text = 'Basic realm="scripted, with a comma"'
        self.give(401, error("UNAUTHORIZED", "authentication required"), {"WWW-Authenticate": text})

    def token(self):
        scripted = self.scripted
        form = parse_qs(self.request_seen.body.decode())
        allowed = (
            form.get("refresh_token") == [scripted.identity]
            if self.command == "POST"
            else scripted.anonymous or self.headers.get("Authorization", "") == self.basic()
        )
        if not allowed:
            self.give(401, error("UNAUTHORIZED", "wrong user"))
            return
        token = f"token-{len(scripted.log)}-{time.monotonic_ns()}"
        scripted.tokens.add(token)
        name = "access_token" if self.command == "POST" else "token"
        found = {name: token}
        if scripted.lifetime is not None:
            found["expires_in"] = scripted.lifetime
        self.give(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def manifest(self, repository, locator):
        scripted = self.scripted
        if self.command == "PUT":
            body, media_type = self.request_seen.body, self.headers["Content-Type"]
            scripted.manifests[repository, locator] = (media_type, body)
            scripted.manifests[repository, digest(body)] = (media_type, body)
            self.give(201, headers={"Docker-Content-Digest": digest(body)})
        elif found := scripted.manifests.get((repository, locator)):
            headers = {"Content-Type": found[0], "Docker-Content-Digest": digest(found[1])}
            self.give(200, found[1], headers)
        else:
            self.give(404, error("MANIFEST_UNKNOWN", "manifest unknown"))

    def blob(self, name):
        data = self.scripted.blobs.get(name)
        if data is None:
            self.give(404, error("BLOB_UNKNOWN", "blob unknown to registry"))
        else:
            self.bytes(data)

    def bytes(self, data, *, length=None):
        """Some bytes, or the range of them that was asked for; `length` claims another size."""
        etag = self.scripted.etag
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", etag) == etag
        headers = {"ETag": etag} if etag else {}
        status, start = 200, 0
        if span and same and self.scripted.ranges:
            status, start = 206, int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if length is not None:
            headers["Content-Length"] = str(length - start)
        self.give(status, data[start:], headers)

    def upload(self, repository, session):
        uploads, query = self.scripted.uploads, parse_qs(urlsplit(self.path).query)
        if self.command == "POST":
            if query.get("mount", [""])[0] in self.scripted.blobs and "from" in query:
                self.give(201, headers={"Location": "/v2/x"})
                return
            session = f"s{len(uploads)}"
            uploads[session] = b""
        elif self.command in ("PATCH", "PUT"):
            span = self.headers.get("Content-Range", f"{len(uploads[session])}-").partition("-")[0]
            if int(span) != len(uploads[session]):
                self.give(416)
                return
            uploads[session] += self.request_seen.body
        if self.command == "PUT":
            name = query["digest"][0]
            if digest(uploads[session]) != name:
                self.give(400, error("DIGEST_INVALID", "provided digest did not match"))
                return
            self.scripted.blobs[name] = uploads.pop(session)
            self.give(201, headers={"Docker-Content-Digest": name})
            return
        status = 204 if self.command == "GET" else 202
        self.give(status, headers=self.session(repository, session))

    def session(self, repository, session):
        size = len(self.scripted.uploads[session])
        return {
            "Location": f"/v2/{repository}/blobs/uploads/{session}?_state=abc",
            "Range": f"0-{max(size - 1, 0)}",
        }


def error(code, message):
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def status(number, body=b"", **headers):
    """Answer with a status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.give(number, body, named)


def redirect(location, number=307):
    """Send elsewhere."""
    return status(number, Location=location)


def usual(handler):
    """Nothing special this time."""
    handler.usual()


def cut(count):
    """Claim the whole body, send so many bytes of it, and hang up."""

    def act(handler):
        send = handler.wfile
        kept, handler.wfile = [], Catch(send, count)
        handler.usual()
        handler.wfile = send
        send.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        del kept

    return act


def stall(count):
    """Send so many bytes of the body, then nothing more until the test ends."""

    def act(handler):
        send = handler.wfile
        handler.wfile = Catch(send, count)
        handler.usual()
        handler.wfile = send
        send.flush()
        handler.scripted.released.wait(60)
        handler.close_connection = True

    return act


class Catch:
    """Lets headers and so many bytes of a body through."""

    def __init__(self, send, count):
        self.send, self.count, self.in_body = send, count, False

    def write(self, data):
        if not self.in_body:
            self.send.write(data)
            self.in_body = data.endswith(b"\r\n\r\n")
        else:
            self.send.write(data[: self.count])
            self.count = max(self.count - len(data), 0)
        return len(data)

    def flush(self):
        self.send.flush()


def body(data, **headers):
    """Another body, whatever was asked."""
    return status(200, data, **headers)


def then(first, second):
    """Do one thing beside the other, such as expiring tokens before an answer."""

    def act(handler):
        first(handler)
        second(handler)

    return act
