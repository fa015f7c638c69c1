"""Scripted servers and clients for them."""

from __future__ import annotations

import datetime
import json
import ssl

import pytest

from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.registry import Registry
from pytest_sandbox.oci.retries import RetryRule
from tests.oci import making
from tests.oci.registry.scripted import Scripted


class Sink:
    """Keeps a blob, and counts how often it began anew."""

    def __init__(self):
        self.data, self.restarts = b"", 0

    def write(self, block):
        self.data += block

    def restart(self):
        self.data, self.restarts = b"", self.restarts + 1


class Client:
    """A registry client whose waits are not waited for: `waits` in seconds, `lines` were shown."""

    def __init__(self, **options):
        self.waits, self.lines = [], []
        rule = RetryRule(say=self.lines.append, sleep=self.waits.append)
        options = {"environ": {}, "timeout": 5.0, "rule": rule, **options}
        self.registry = Registry(**options)

    def resolve(self, server, name="library/app:latest", platform=None):
        return self.registry.resolve(parse_reference(f"{server.host}/{name}"), platform)

    def blob(self, server, descriptor, name="library/app:latest"):
        sink = Sink()
        self.registry.blob(parse_reference(f"{server.host}/{name}"), descriptor, sink)
        return sink


@pytest.fixture
def serve():
    """Starts scripted servers; they end with the test."""
    running = []

    def start(**options):
        server = Scripted(**options)
        server.__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def client():
    """Makes clients; their connections are closed with the test."""
    made = []

    def make(**options):
        made.append(Client(**options))
        return made[-1]

    yield make
    for each in made:
        each.registry.close()


@pytest.fixture
def app():
    """An image with one layer of 200 KB."""
    return making.image(making.tar_of({"data": bytes(range(256)) * 800}))


@pytest.fixture
def layer(app):
    """The descriptor of its layer."""
    return app.parsed.layers[0]


@pytest.fixture
def login(tmp_path):
    """An environment in which credentials for servers are known: user `me`, or other fields."""

    def login(*servers, **fields):
        entry = fields or {"username": "me", "password": "geheim"}
        path = tmp_path / "config.json"
        hosts = [getattr(server, "host", server) for server in servers]
        path.write_text(json.dumps({"auths": dict.fromkeys(hosts, entry)}))
        return {"DOCKER_CONFIG": str(tmp_path)}

    return login


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A server's TLS context for localhost, and the file of its certificate."""
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
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path_factory.mktemp("tls") / "site.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, path
