from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pytest_sandbox.provision import certificates
from pytest_sandbox.provision.certificates import (
    extra_certificates,
    fingerprint,
    sandbox_ca_environment,
)


def make_ca(name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def pem(cert):
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def digest(cert):
    return hashlib.sha256(cert.public_bytes(serialization.Encoding.DER)).hexdigest()


@pytest.fixture
def trust(tmp_path, monkeypatch):
    """A machine's trust of our own: `bundle`, `anchors` and `public` under tmp_path."""
    for name in ("anchors", "public"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(certificates, "ANCHOR_FOLDERS", (str(tmp_path / "anchors"),))
    monkeypatch.setattr(certificates, "PUBLIC_FOLDERS", (str(tmp_path / "public"),))
    monkeypatch.setattr(certificates, "SYSTEM_BUNDLES", (str(tmp_path / "bundle.pem"),))
    certificates._extra.cache_clear()
    yield tmp_path
    certificates._extra.cache_clear()


def public_roots():
    import certifi

    return Path(certifi.where()).read_text(encoding="utf-8")


def test_public_authorities_are_not_extra(trust):
    (trust / "bundle.pem").write_text(public_roots())
    assert extra_certificates({}) == ()


def test_company_authority_in_the_bundle_is_extra(trust):
    ours, distribution = make_ca("company"), make_ca("distribution")
    (trust / "public" / "d.crt").write_text(pem(distribution))
    (trust / "bundle.pem").write_text(public_roots() + pem(ours) + pem(distribution))
    found = extra_certificates({})
    assert [fingerprint(text) for text in found] == [digest(ours)]
    ssl.create_default_context(cadata="".join(found))  # well-formed PEM


def test_named_files_take_the_place_of_the_system_bundle(trust, tmp_path):
    system, named = make_ca("system"), make_ca("named")
    (trust / "bundle.pem").write_text(pem(system))
    (tmp_path / "mine.pem").write_text(pem(named))
    for variable in ("SSL_CERT_FILE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"):
        found = extra_certificates({variable: str(tmp_path / "mine.pem")})
        assert [fingerprint(text) for text in found] == [digest(named)], variable
    found = extra_certificates({"SSL_CERT_FILE": "/nonexistent/file"})
    assert [fingerprint(text) for text in found] == [digest(system)]


def test_a_certificate_folder_is_read(trust, tmp_path):
    ours = make_ca("dir")
    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "ours.pem").write_text(pem(ours))
    found = extra_certificates({"SSL_CERT_DIR": f"/nonexistent:{folder}"})
    assert [fingerprint(text) for text in found] == [digest(ours)]


def test_order_and_duplicates_do_not_matter(trust):
    one, two = make_ca("one"), make_ca("two")
    (trust / "anchors" / "b.crt").write_text(pem(one) + pem(two))
    (trust / "anchors" / "a.pem").write_bytes(pem(two).replace("\n", "\r\n").encode())
    (trust / "anchors" / "c.cer").write_bytes(one.public_bytes(serialization.Encoding.DER))
    found = extra_certificates({})
    assert [fingerprint(text) for text in found] == sorted([digest(one), digest(two)])
    assert found[0] in {pem(one), pem(two)}


def test_trusted_form_equals_the_plain_form(trust):
    cert = make_ca("trusted")
    trust_settings = b"0\x0c0\x0a\x06\x08+\x06\x01\x05\x05\x07\x03\x01"
    der = cert.public_bytes(serialization.Encoding.DER) + trust_settings
    body = base64.encodebytes(der).decode()
    text = f"-----BEGIN TRUSTED CERTIFICATE-----\n{body}-----END TRUSTED CERTIFICATE-----\n"
    (trust / "anchors" / "t.pem").write_text(text)
    assert extra_certificates({}) == (pem(cert),)


def test_damaged_files_are_left_out(trust):
    ours = make_ca("good")
    (trust / "anchors" / "bad.crt").write_text(
        "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n" + pem(ours)
    )
    (trust / "anchors" / "empty.crt").write_text("")
    assert extra_certificates({}) == (pem(ours),)


def test_a_distribution_certifi_does_not_hide_extra_certificates(trust, monkeypatch):
    ours = make_ca("company")
    (trust / "bundle.pem").write_text(pem(ours))
    package = trust / "certifi"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cacert.pem").symlink_to(trust / "bundle.pem")

    class Spec:
        origin = str(package / "__init__.py")

    monkeypatch.setattr(certificates.importlib.util, "find_spec", lambda _name: Spec)
    assert extra_certificates({}) == (pem(ours),)


@pytest.mark.parametrize(
    ("family", "bundle"),
    [
        ("debian", "/etc/ssl/certs/ca-certificates.crt"),
        ("rhel", "/etc/pki/tls/certs/ca-bundle.crt"),
        ("suse", "/etc/ssl/ca-bundle.pem"),
    ],
)
def test_sandbox_environment_points_at_the_familys_bundle(family, bundle):
    env = sandbox_ca_environment(family, ("PEM",))
    assert env["SSL_CERT_FILE"] == env["NODE_EXTRA_CA_CERTS"] == env["PIP_CERT"] == bundle
    assert sandbox_ca_environment(family, ()) == {}
