"""Downloads by way of a proxy, and bodies that come in unusual ways."""

from __future__ import annotations

import base64
import datetime
import gc
import gzip
import hashlib
import select
import socket
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pytest_sandbox.errors import Blame, DownloadError
from pytest_sandbox.plans.downloads import Downloader
from pytest_sandbox.transport.addresses import Failure, check_url
from pytest_sandbox.transport.connections import _exempts

BODY = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """`answer` takes the handler of a GET; CONNECT leads to `target` or gets `status`."""

    daemon_threads = True

    def __init__(self, answer=None, *, target=None, status=200, family=socket.AF_INET):
        self.address_family = family
        super().__init__(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), Handler)
        self.answer, self.target, self.status, self.log = answer, target, status, []

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.log.append((self.path, dict(self.headers)))
        self.close_connection = True
        self.server.answer(self)

    def do_CONNECT(self):
        self.server.log.append((self.path, dict(self.headers)))
        self.close_connection = True
        self.send_response(self.server.status)
        self.end_headers()
        if self.server.status != 200:
            return
        with socket.create_connection(self.server.target) as far:
            ends = {self.connection: far, far: self.connection}
            while True:
                pending = isinstance(self.connection, ssl.SSLSocket) and self.connection.pending()
                ready = [self.connection] if pending else select.select(list(ends), [], [], 5)[0]
                for end in ready:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    ends[end].sendall(data)

    def log_message(self, format, *args):
        pass


def whole(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY)


@contextmanager
def serving(server, context=None):
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def pem(tmp_path):
    """A certificate of mirror.example and proxy names that signs itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's own CA")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("mirror.example"), x509.DNSName("localhost")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "site.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


@pytest.fixture
def fetch(tmp_path):
    """Fetches one address; a socket that was left open fails the test (ResourceWarning)."""

    def fetch(url, checksum=SHA256, environ=None, **options):
        loader = Downloader(
            tmp_path / "cache", environ=environ or {}, timeout=5.0, sleep=lambda _: None, **options
        )
        try:
            return loader.fetch([url], checksum)
        finally:
            gc.collect()

    return fetch


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_gets_its_password_and_the_server_does_not(fetch, pem, scheme):
    path, context = pem
    with (
        serving(Server(whole), context) as far,
        serving(Server(target=far.server_address), context if scheme == "https" else None) as proxy,
    ):
        address = f"{scheme}://us%40er:p%C3%A4ss@localhost:{proxy.server_address[1]}/"
        environ = {"https_proxy": address, "SSL_CERT_FILE": str(path)}
        done = fetch("https://mirror.example/file?a=1", environ=environ)
    assert done.path.read_bytes() == BODY
    (connect, asked), (got, headers) = proxy.log[0], far.log[0]
    secret = base64.b64encode("us@er:päss".encode()).decode()
    assert (connect, got) == ("mirror.example:443", "/file?a=1")
    assert asked["Proxy-Authorization"] == f"Basic {secret}"
    assert headers["Host"] == "mirror.example"
    assert "Proxy-Authorization" not in headers
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("status", "blame"), [(403, Blame.NETWORK), (407, Blame.HOST), (502, Blame.NETWORK)]
)
def test_a_refusing_proxy_is_told_as_one(fetch, status, blame):
    with serving(Server(status=status)) as proxy:
        environ = {"ALL_PROXY": f"http://u:secret@127.0.0.1:{proxy.server_address[1]}"}
        with pytest.raises(DownloadError) as info:
            fetch("https://mirror.example/file?sig=hidden", environ=environ)
    assert info.value.blame is blame
    assert f"the proxy refuses: {status}" in info.value.what
    text = f"{info.value} {info.value.details}"
    assert "secret" not in text
    assert "hidden" not in text


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "http://nowhere.invalid:3128"])
def test_a_proxy_out_of_reach_is_the_networks(fetch, proxy):
    with pytest.raises(DownloadError, match="on the way to the proxy") as info:
        fetch("https://mirror.example/file", environ={"https_proxy": proxy})
    assert info.value.blame is Blame.NETWORK
    assert "check https_proxy" in info.value.next_step
    assert "mirror.example cannot be resolved" not in info.value.what


@pytest.mark.parametrize("proxy", ["http://", "http://[broken", "socks4://u:secret@h:1"])
def test_an_impossible_proxy_is_the_hosts(fetch, proxy):
    with pytest.raises(DownloadError, match="the proxy in https_proxy cannot be used") as info:
        fetch("https://mirror.example/file", environ={"https_proxy": proxy})
    assert info.value.blame is Blame.HOST


@pytest.mark.parametrize(
    ("entry", "host", "covered"),
    [
        ("*", "mirror.example", True),
        ("mirror.example", "mirror.example", True),
        ("mirror.example", "a.mirror.example", True),
        ("mirror.example", "amirror.example", False),
        (".mirror.example", "a.mirror.example", True),
        (".mirror.example", "mirror.example", False),
        ("*.mirror.example", "a.mirror.example", True),
        ("mirror.example:443", "mirror.example", True),
        ("mirror.example:8443", "mirror.example", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.34", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "mirror.example", False),
        ("fd00::1", "fd00::1", True),
        ("[fd00::1]", "fd00::1", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("[fd00::1]:444", "fd00::1", False),
    ],
)
def test_an_entry_of_no_proxy(entry, host, covered):
    assert _exempts(entry, host, 443) is covered


def test_a_content_encoding_is_part_of_the_file(fetch):
    packed = gzip.compress(BODY)

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(packed)))
        handler.end_headers()
        handler.wfile.write(packed)

    with serving(Server(answer)) as site:
        url = f"http://127.0.0.1:{site.server_address[1]}/a.gz"
        done = fetch(url, hashlib.sha256(packed).hexdigest())
    assert done.path.read_bytes() == packed


@pytest.mark.parametrize("cut", [False, True])
def test_a_body_in_chunks_is_whole_or_cut(fetch, cut):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(BODY), 50_000):
            block = BODY[start : start + 50_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        if not cut:
            handler.wfile.write(b"0\r\n\r\n")

    with serving(Server(answer)) as site:
        url = f"http://127.0.0.1:{site.server_address[1]}/file"
        if not cut:
            assert fetch(url).path.read_bytes() == BODY
            return
        with pytest.raises(DownloadError, match="the connection was cut") as info:
            fetch(url)
    assert info.value.blame is Blame.NETWORK
    assert len(site.log) == 4


def test_ipv6_loopback_is_loopback(fetch):
    try:
        server = Server(whole, family=socket.AF_INET6)
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    with serving(server) as site:
        assert fetch(f"http://[::1]:{site.server_address[1]}/file").size == len(BODY)


def test_an_answer_that_is_no_http_is_the_networks(fetch):
    with (
        serving(Server(lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n"))) as site,
        pytest.raises(DownloadError, match="the connection was cut") as info,
    ):
        fetch(f"http://127.0.0.1:{site.server_address[1]}/file")
    assert info.value.blame is Blame.NETWORK


def test_a_redirect_may_be_written_in_utf8(fetch):
    def answer(handler):
        if handler.path == "/":
            handler.send_response(302)
            handler.wfile.write(b"")
            handler._headers_buffer.append("Location: /ä b?q=ö\r\n".encode())
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            whole(handler)

    with serving(Server(answer)) as site:
        done = fetch(f"http://127.0.0.1:{site.server_address[1]}/")
    assert done.final_url.endswith("/%C3%A4%20b?q=%C3%B6")
    assert site.log[1][0] == "/%C3%A4%20b?q=%C3%B6"


@pytest.mark.parametrize(
    "url",
    [
        "https://a..example/x",
        f"https://{'a' * 64}.example/x",
        "https://mirror.example/x\ny",
        "https://mirror.example:99999/x",
        "https://u:hidden@[broken/x",
        "",
    ],
)
def test_what_is_no_address(url):
    with pytest.raises(Failure, match="is no address") as info:
        check_url(url, blame=Blame.RECIPE)
    assert "hidden" not in info.value.what


def test_a_name_in_another_script_is_asked_in_ascii():
    assert check_url("https://bücher.example/x", blame=Blame.RECIPE).host == "xn--bcher-kva.example"
