"""Downloads against a real server on loopback."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pytest_sandbox.errors import Blame, DownloadError
from pytest_sandbox.plans.downloads import Downloader
from pytest_sandbox.transport import addresses
from pytest_sandbox.transport.addresses import Failure, check_url, shown

BODY = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(BODY).hexdigest()


class Site(ThreadingHTTPServer):
    """A server whose paths are functions of the request; `log` holds each (path, headers)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes = {}
        self.log = []
        self.lock = threading.Lock()
        self.scheme = "http"

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request, client_address):
        pass  # a client that goes away in the middle is what some tests are about

    def paths(self):
        return [path for path, _ in self.log]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.log.append((self.path, dict(self.headers)))
            nth = self.server.paths().count(self.path)
        self.close_connection = True
        self.server.routes[self.path.partition("?")[0]](self, nth)

    def do_CONNECT(self):
        self.server.log.append((self.path, dict(self.headers)))
        self.reply(407, b"")

    def reply(self, status, body=BODY, **headers):
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@contextmanager
def serving(site):
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


@pytest.fixture
def site():
    with serving(Site()) as site:
        site.routes["/file"] = lambda handler, _: handler.reply(200)
        site.routes["/missing"] = lambda handler, _: handler.reply(404, b"no")
        yield site


class Waits(list):
    """What the downloader says and how long it would sleep."""

    def __init__(self):
        super().__init__()
        self.said = []


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def downloader(tmp_path, waits):
    def make(**options):
        options = {"environ": {}, "timeout": 5.0} | options
        return Downloader(tmp_path / "cache", say=waits.said.append, sleep=waits.append, **options)

    return make


def failing(downloader, urls, checksum=SHA256, **options):
    with pytest.raises(DownloadError) as info:
        downloader.fetch([urls] if isinstance(urls, str) else urls, checksum, **options)
    return info.value


def leftovers(tmp_path):
    return list((tmp_path / "cache").rglob("*.part"))


def test_a_file_is_fetched_once_and_then_comes_from_the_cache(site, downloader, tmp_path):
    first = downloader().fetch([site.url("/file?token=secret")], SHA256, size=len(BODY))
    assert first.path == tmp_path / "cache/downloads/sha256" / SHA256[:2] / SHA256
    assert first.path.read_bytes() == BODY
    assert (first.sha256, first.size, first.cached, first.verified) == (
        SHA256,
        1 << 20,
        False,
        True,
    )
    assert first.final_url == first.url == site.url("/file?token=secret")
    assert site.log[0][1]["Accept-Encoding"] == "identity"

    again = downloader(offline=True).fetch([site.url("/file")], f"sha256:{SHA256.upper()}")
    assert again.cached
    assert again.path == first.path
    assert again.final_url == ""
    assert len(site.log) == 1
    assert leftovers(tmp_path) == []


def test_sha512_is_a_key_of_its_own(site, downloader):
    checksum = hashlib.sha512(BODY).hexdigest()
    done = downloader().fetch([site.url("/file")], checksum, "sha512")
    assert done.path.parent.parent.name == "sha512"
    assert done.sha256 == SHA256
    assert downloader().fetch([site.url("/file")], checksum, "sha512").sha256 == SHA256
    assert len(site.log) == 1


def test_without_a_checksum_nothing_is_taken_from_the_cache(site, downloader, tmp_path):
    for _ in range(2):
        done = downloader().fetch([site.url("/file")], "")
        assert (done.verified, done.cached, done.sha256) == (False, False, SHA256)
        assert done.path.read_bytes() == BODY
    assert len(site.log) == 2
    assert leftovers(tmp_path) == []


def test_a_damaged_cache_entry_is_fetched_again(site, downloader, waits):
    path = downloader().fetch([site.url("/file")], SHA256).path
    path.write_bytes(BODY[:-1] + b"x")
    assert failing(downloader(offline=True), site.url("/file")).blame is Blame.HOST
    done = downloader().fetch([site.url("/file")], SHA256)
    assert not done.cached
    assert path.read_bytes() == BODY
    assert len(site.log) == 2
    assert any("damaged" in line for line in waits.said)


def test_offline_is_the_hosts_and_asks_nobody(site, downloader):
    error = failing(downloader(offline=True), site.url("/file"))
    assert error.blame is Blame.HOST
    assert "offline" in error.what
    assert failing(downloader(offline=True), site.url("/file"), "").blame is Blame.HOST
    assert site.log == []


def test_wrong_content_is_upstreams_and_is_not_retried(site, downloader, waits, tmp_path):
    error = failing(downloader(), site.url("/file?key=hidden"), "0" * 64)
    assert error.blame is Blame.UPSTREAM
    assert SHA256 in error.what
    assert "0" * 64 in error.what
    assert "hidden" not in str(error)
    assert (waits, len(site.log), leftovers(tmp_path)) == ([], 1, [])


def test_wrong_content_weighs_more_than_a_missing_mirror(site, downloader):
    error = failing(downloader(), [site.url("/missing"), site.url("/file")], "0" * 64)
    assert SHA256 in error.what
    assert "404" in error.what


def test_a_web_page_instead_of_the_file_is_called_one(site, downloader):
    site.routes["/page"] = lambda handler, _: handler.reply(
        200, b"<html>", Content_Type="text/html"
    )
    assert "web page" in failing(downloader(), site.url("/page")).what


def test_a_wrong_size_stops_before_the_body(site, downloader):
    error = failing(downloader(), site.url("/file"), size=5)
    assert error.blame is Blame.UPSTREAM
    assert f"{len(BODY)} bytes, not 5" in error.what


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_greatest_size_is_refused(site, downloader, declared):
    def endless(handler, nth):
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY)

    site.routes["/endless"] = endless
    error = failing(downloader(max_bytes=1000), site.url("/endless"))
    assert error.blame is Blame.UPSTREAM
    assert "larger than 1000 bytes" in error.what


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_refusal_moves_on_to_the_next_address(site, downloader, waits, status):
    site.routes["/no"] = lambda handler, _: handler.reply(status, b"")
    error = failing(downloader(), site.url("/no"))
    assert error.blame is Blame.UPSTREAM
    assert str(status) in error.what
    done = downloader().fetch([site.url("/no"), site.url("/file")], SHA256)
    assert done.url == site.url("/file")
    assert site.paths() == ["/no", "/no", "/file"]
    assert waits == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_tired_server_is_asked_again(site, downloader, waits, status):
    site.routes["/tired"] = lambda handler, nth: handler.reply(status if nth < 3 else 200)
    done = downloader().fetch([site.url("/tired")], SHA256)
    assert done.path.read_bytes() == BODY
    assert waits == [1.0, 2.0]
    assert "try 2 of 4 in 1 s" in waits.said[0]
    assert str(status) in waits.said[0]


def test_four_tries_are_all_and_the_network_is_to_blame(site, downloader, waits):
    site.routes["/down"] = lambda handler, _: handler.reply(502, b"")
    error = failing(downloader(), [site.url("/down"), site.url("/missing")])
    assert error.blame is Blame.NETWORK
    assert waits == [1.0, 2.0, 4.0]
    assert site.paths() == ["/down"] * 4 + ["/missing"]
    assert error.details.splitlines()[1].startswith("upstream:")


@pytest.mark.parametrize(
    ("value", "wait"), [("7", 7.0), ("86400", 60.0), ("soon", 1.0), ("0", 1.0)]
)
def test_retry_after_is_honoured_up_to_a_minute(site, downloader, waits, value, wait):
    site.routes["/busy"] = lambda handler, nth: (
        handler.reply(429, b"", Retry_After=value) if nth == 1 else handler.reply(200)
    )
    downloader().fetch([site.url("/busy")], SHA256)
    assert waits == [wait]


def test_retry_after_may_be_a_date(site, downloader, waits):
    date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    site.routes["/busy"] = lambda handler, nth: (
        handler.reply(503, b"", Retry_After=date.strftime("%a, %d %b %Y %H:%M:%S GMT"))
        if nth == 1
        else handler.reply(200)
    )
    downloader().fetch([site.url("/busy")], SHA256)
    assert 20 < waits[0] <= 30


def test_a_rate_limited_403_is_the_networks(site, downloader, waits):
    site.routes["/limit"] = lambda handler, _: handler.reply(403, b"", X_RateLimit_Remaining="0")
    assert failing(downloader(), site.url("/limit")).blame is Blame.NETWORK
    assert len(waits) == 3


def cut(site, etag, *, honour=True, change=False):
    """`/cut` gives half of the body first, then the rest to a Range with the right If-Range."""

    def route(handler, nth):
        body = BODY[::-1] if change and nth > 1 else BODY
        if nth == 1:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(BODY)))
            if etag:
                handler.send_header("ETag", etag)
            handler.end_headers()
            handler.wfile.write(BODY[: 1 << 19])
            return
        start = handler.headers.get("Range", "")
        if start and honour and handler.headers.get("If-Range") == etag:
            begin = int(start.removeprefix("bytes=").rstrip("-"))
            rest = body[begin:]
            span = f"bytes {begin}-{len(body) - 1}/{len(body)}"
            handler.reply(206, rest, Content_Range=span, ETag=etag)
        else:
            handler.reply(200)

    site.routes["/cut"] = route


def test_a_cut_body_goes_on_where_it_was_cut(site, downloader, waits):
    cut(site, '"one"')
    done = downloader().fetch([site.url("/cut")], SHA256, size=len(BODY))
    assert done.path.read_bytes() == BODY
    asked = site.log[1][1]
    assert asked["If-Range"] == '"one"'
    assert 0 < int(asked["Range"][6:-1]) <= 1 << 19
    assert waits == [1.0]
    assert "cut" in waits.said[0]


@pytest.mark.parametrize(("etag", "honour"), [("", True), ('W/"weak"', True), ('"one"', False)])
def test_a_cut_body_begins_anew_where_it_cannot_go_on(site, downloader, etag, honour):
    cut(site, etag, honour=honour)
    assert downloader().fetch([site.url("/cut")], SHA256).path.read_bytes() == BODY
    assert ("Range" in site.log[1][1]) is (etag == '"one"')


def test_two_versions_glued_together_are_fetched_once_more_whole(site, downloader):
    cut(site, '"one"', change=True)
    assert downloader().fetch([site.url("/cut")], SHA256).path.read_bytes() == BODY
    assert "Range" in site.log[1][1]
    assert "Range" not in site.log[2][1]


def test_a_server_that_is_always_cut_is_the_networks(site, downloader):
    def route(handler, nth):
        handler.send_response(200)
        handler.send_header("Content-Length", "99")
        handler.end_headers()

    site.routes["/cut"] = route
    error = failing(downloader(), site.url("/cut"))
    assert error.blame is Blame.NETWORK
    assert len(site.log) == 4


def test_a_silent_server_times_out_as_network(site, downloader, waits):
    gone = threading.Event()
    site.routes["/silent"] = lambda *_: gone.wait(5)
    error = failing(downloader(timeout=0.1), site.url("/silent"))
    gone.set()
    assert error.blame is Blame.NETWORK
    assert "no answer in time" in error.what
    assert len(waits) == 3


def test_a_slow_drip_ends_at_the_deadline(site, downloader, waits):
    def drip(handler, nth):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    site.routes["/drip"] = drip
    error = failing(downloader(deadline=0.1), site.url("/drip"))
    assert error.blame is Blame.NETWORK
    assert "not through after 0.1 s" in error.what
    assert waits == []


def test_a_refused_connection_is_the_networks(downloader, waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = failing(downloader(), f"http://127.0.0.1:{taken.getsockname()[1]}/x")
    assert error.blame is Blame.NETWORK
    assert "refused" in error.what
    assert waits == [], "nobody listens on this machine: nor will anybody in a moment"


@pytest.mark.parametrize(
    ("number", "tries"), [(socket.EAI_NONAME, 1), (socket.EAI_NODATA, 1), (socket.EAI_AGAIN, 4)]
)
def test_an_unknown_name_is_the_networks(downloader, waits, monkeypatch, number, tries):
    def unknown(*_args, **_options):
        raise socket.gaierror(number, "as the resolver says")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failing(downloader(), "https://nowhere.invalid/x")
    assert error.blame is Blame.NETWORK
    assert "nowhere.invalid cannot be resolved" in error.what
    assert len(waits) == tries - 1


def redirect(site, path, target, status=302):
    site.routes[path] = lambda handler, _: handler.reply(status, b"", Location=target)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_recorded(site, downloader, status):
    redirect(site, "/a", "b?x=1", status)
    redirect(site, "/b", site.url("/file#part"), status)
    done = downloader().fetch([site.url("/a")], SHA256)
    assert (done.url, done.final_url) == (site.url("/a"), site.url("/file"))
    assert site.paths() == ["/a", "/b?x=1", "/file"]


def test_ten_redirects_are_the_most(site, downloader):
    for n in range(11):
        redirect(site, f"/{n}", f"/{n + 1}" if n < 10 else "/file")
    assert downloader().fetch([site.url("/1")], SHA256).size == len(BODY)
    site.log.clear()
    error = failing(downloader(), site.url("/0"), "")
    assert error.blame is Blame.UPSTREAM
    assert "more than 10 redirects" in error.what
    assert len(site.log) == 11


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("http://mirror.example/x", "plain http"),
        ("file:///etc/passwd", "no https address"),
        ("ftp://mirror.example/x", "no https address"),
        ("https://169.254.169.254/latest", "link-local or metadata"),
        ("https://[fe80::1]/", "link-local or metadata"),
        ("https://[::ffff:169.254.1.1]/", "link-local or metadata"),
        ("https://metadata.google.internal/", "link-local or metadata"),
        ("https://user:word@mirror.example/x", "user name or password"),
        ("http://0.0.0.0/x", "plain http"),
        ("https://[broken", "no address"),
    ],
)
def test_redirects_to_forbidden_places_are_upstreams_fault(site, downloader, target, why):
    redirect(site, "/away", target)
    error = failing(downloader(), site.url("/away"))
    assert error.blame is Blame.UPSTREAM
    assert why in error.what
    assert "word" not in str(error).replace("password", "")
    assert site.paths() == ["/away"]


@pytest.mark.parametrize(
    "url",
    [
        "http://mirror.example/x",
        "http://127.0.0.1.mirror.example/x",
        "http://2130706433/x",
        "https://u:secret@mirror.example/x",
        "file:///etc/passwd",
        "https:///x",
        "x.tar.gz",
        "https://169.254.169.254/x",
    ],
)
def test_a_forbidden_address_in_a_recipe_is_the_recipes_fault(downloader, url):
    error = failing(downloader(), url)
    assert error.blame is Blame.RECIPE
    assert "secret" not in str(error)


def test_only_loopback_leads_to_loopback():
    far, near = "https://mirror.example/x", "http://127.0.0.1:8080/x"
    assert check_url(near, blame=Blame.RECIPE).port == 8080
    assert check_url(near, blame=Blame.RECIPE, come_from="http://[::1]/").port == 8080
    with pytest.raises(Failure, match="is this machine itself"):
        check_url(near, blame=Blame.UPSTREAM, come_from=far)


def test_the_address_behind_a_name_is_held_to_the_rules_too(site, downloader, monkeypatch):
    monkeypatch.setattr(addresses, "is_forbidden", lambda host: host == "127.0.0.1")
    url = site.url("/file").replace("127.0.0.1", "localhost")
    error = failing(downloader(), url)
    assert error.blame is Blame.UPSTREAM
    assert "leads to the address 127.0.0.1" in error.what


def test_a_shown_address_keeps_secrets():
    assert shown("https://u:p@mirror.example:8443/a?sig=1#f") == "https://mirror.example:8443/a?..."


@pytest.mark.parametrize(
    ("checksum", "options", "text"),
    [
        ("abc", {}, "64 hex digits"),
        ("z" * 64, {}, "64 hex digits"),
        (SHA256, {"algorithm": "md5"}, "no known hash"),
        (SHA256, {"algorithm": "sha512"}, "128 hex digits"),
        (SHA256, {"size": -1}, "no size"),
    ],
)
def test_a_bad_request_is_the_recipes_fault(downloader, checksum, options, text):
    error = failing(downloader(), "https://mirror.example/x", checksum, **options)
    assert error.blame is Blame.RECIPE
    assert text in error.what
    assert failing(downloader(), []).blame is Blame.RECIPE


def test_loopback_never_goes_through_a_proxy(site, downloader):
    environ = {"http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    assert downloader(environ=environ).fetch([site.url("/file")], SHA256).size == len(BODY)


def test_https_goes_through_the_proxy_of_the_environment(site, downloader):
    proxy = {"https_proxy": site.url("").removeprefix("http://")}
    error = failing(downloader(environ=proxy), "https://mirror.example/x")
    assert site.paths() == ["mirror.example:443"]
    assert error.blame is Blame.HOST  # 407: the proxy wants a password
    assert "proxy" in error.what


def test_no_proxy_exempts_a_domain(site, downloader):
    environ = {"HTTPS_PROXY": site.url(""), "NO_PROXY": "other.example, .invalid"}
    error = failing(downloader(environ=environ), "https://nowhere.invalid/x")
    assert "cannot be resolved" in error.what
    assert site.log == []


def test_an_impossible_proxy_is_the_hosts_and_its_password_stays_hidden(downloader):
    environ = {"https_proxy": "gopher://u:secret@proxy.example:1"}
    error = failing(downloader(environ=environ), "https://mirror.example/x")
    assert error.blame is Blame.HOST
    assert "https_proxy" in error.what
    assert "secret" not in f"{error} {error.details}"


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that signs itself: (PEM file of it, PEM file with its key)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's own CA")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    public = tmp_path / "ca.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    both = tmp_path / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    both.write_bytes(public.read_bytes() + private)
    return public, both


@pytest.fixture
def secure_site(certificate):
    site = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1])
    site.socket = context.wrap_socket(site.socket, server_side=True)
    site.scheme = "https"
    site.routes["/file"] = lambda handler, _: handler.reply(200)
    with serving(site):
        yield site


def test_an_untrusted_certificate_is_the_hosts_and_is_not_retried(secure_site, downloader, waits):
    error = failing(downloader(), secure_site.url("/file"))
    assert error.blame is Blame.HOST
    assert "certificate of 127.0.0.1 is not trusted" in error.what
    assert "SSL_CERT_FILE" in error.next_step
    assert waits == []


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environments_ca_file_is_trusted(secure_site, downloader, certificate, variable):
    environ = {variable: str(certificate[0])}
    done = downloader(environ=environ).fetch([secure_site.url("/file")], SHA256)
    assert done.path.read_bytes() == BODY


def test_a_ca_file_that_is_not_there_is_said(site, downloader, waits):
    downloader(environ={"SSL_CERT_FILE": "/nowhere/ca.pem"}).fetch([site.url("/file")], SHA256)
    assert any(line.startswith("SSL_CERT_FILE=/nowhere/ca.pem") for line in waits.said)


def test_a_cache_that_cannot_be_written_is_the_hosts(site, downloader, tmp_path):
    (tmp_path / "cache").write_text("a file")
    error = failing(downloader(), site.url("/file"))
    assert error.blame is Blame.HOST
    assert "cache" in error.what


def test_a_full_disk_is_the_hosts(site, tmp_path):
    script = f"""
import subprocess, sys
from pathlib import Path
from pytest_sandbox.errors import DownloadError
from pytest_sandbox.plans.downloads import Downloader
mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", {str(tmp_path)!r}]
if subprocess.run(mount).returncode:
    sys.exit(77)
try:
    Downloader(Path({str(tmp_path)!r}), environ={{}}).fetch([{site.url("/file")!r}], {SHA256!r})
except DownloadError as error:
    print(error, list(Path({str(tmp_path)!r}).rglob("*.part")))
"""
    argv = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs mount namespaces to have a small disk")
    assert done.stdout.startswith("install: host: the disk of"), done.stderr
    assert "is full" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_two_processes_download_a_file_once(site, tmp_path):
    def slow(handler, nth):
        time.sleep(0.5)
        handler.reply(200)

    site.routes["/slow"] = slow
    script = f"""
from pathlib import Path
from pytest_sandbox.plans.downloads import Downloader
done = Downloader(Path({str(tmp_path)!r}), environ={{}}, say=print).fetch(
    [{site.url("/slow")!r}], {SHA256!r})
print(done.cached, done.sha256)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    assert sorted(outputs) == [f"False {SHA256}", f"True {SHA256}", f"True {SHA256}"]
    assert site.paths() == ["/slow"]
    locks = list(tmp_path.rglob("*.lock"))
    assert [lock.name for lock in locks] == [f"{SHA256}.lock"]


def test_threads_of_one_downloader_share_a_download(site, downloader):
    site.routes["/slow"] = lambda handler, _: (time.sleep(0.2), handler.reply(200))
    shared, results = downloader(), []

    def fetch():
        results.append(shared.fetch([site.url("/slow")], SHA256).cached)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True, True, True]
    assert site.paths() == ["/slow"]
