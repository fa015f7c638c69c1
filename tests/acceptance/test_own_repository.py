"""An apt repository of our own on loopback: the key is checked, and so is the signature."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from tests.acceptance.leftovers import on
from tests.acceptance.running import run_pytest
from tests.recipes.apt_repository import build_repository, signer
from tests.recipes.site import serve
from tests.recipes.templates import fill

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is missing: it signs the index"),
]

PREFIX = "pytest-sandbox-tests/own-repository"


@pytest.fixture(scope="module")
def good():
    """The key that the recipe names."""
    with signer("good@example.invalid") as made:
        yield made


@pytest.fixture(scope="module")
def other():
    """A key that nobody trusts."""
    with signer("other@example.invalid") as made:
        yield made


@pytest.fixture(autouse=True)
def _no_images_left(engine):
    """The port is in the image's key: what these tests build serves nobody else."""
    yield
    for image in engine.images():
        if image.name.startswith(PREFIX):
            engine.remove_image(image.name)


def prove(folder, recipe, *, network="host"):
    """Run the recipe on Debian."""
    return run_pytest(
        folder,
        recipe,
        "--sandbox-target=debian",
        f"--sandbox-build-network={network}",
        f"--sandbox-image-prefix={PREFIX}",
    )


def only(run):
    """The one item of a run."""
    assert len(run.cases) == 1, run.output
    return next(iter(run.cases.values()))


def publish(folder, signed_by, key):
    """A repository below `folder`; gives its folder and the key's SHA-256."""
    site = folder / "site"
    site.mkdir()
    build_repository(site, signed_by)
    (site / "key.asc").write_bytes(key)
    return site, hashlib.sha256(key).hexdigest()


def test_package_from_our_repository(tmp_path, good):
    site, digest = publish(tmp_path, good, good.key())
    with serve(site) as port:
        run = prove(tmp_path, fill("own-apt-repo", tmp_path, PORT=port, KEY_SHA256=digest))
    case = only(run)
    assert case.outcome == "passed", run.output
    assert case.properties["sandbox.image"].startswith(f"{PREFIX}:")


@on["oci"]
def test_another_key_is_upstreams_fault(tmp_path, good, other):
    site, _ = publish(tmp_path, other, other.key())
    # Of a key that was never served: one that was lies in the download cache, by its hash.
    digest = hashlib.sha256(good.key() + site.as_posix().encode()).hexdigest()
    with serve(site) as port:
        run = prove(tmp_path, fill("own-apt-repo", tmp_path, PORT=port, KEY_SHA256=digest))
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("image: upstream: "), case.message
    assert run.status == 1


def test_another_signature_fails(tmp_path, good, other):
    site, digest = publish(tmp_path, other, good.key())
    with serve(site) as port:
        run = prove(tmp_path, fill("own-apt-repo", tmp_path, PORT=port, KEY_SHA256=digest))
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("image: "), case.message
    assert "not signed" in run.output or "signature" in run.output.lower()


@on["docker"]
def test_another_package_fails(tmp_path, good):
    site, digest = publish(tmp_path, good, good.key())
    package = next(site.glob("*.deb"))
    package.write_bytes(package.read_bytes().replace(b"data.tar", b"dat4.tar"))
    with serve(site) as port:
        run = prove(tmp_path, fill("own-apt-repo", tmp_path, PORT=port, KEY_SHA256=digest))
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("image: "), case.message


def test_loopback_is_out_of_reach_of_a_build_by_default(tmp_path, good):
    site, digest = publish(tmp_path, good, good.key())
    with serve(site) as port:
        recipe = fill("own-apt-repo", tmp_path, PORT=port, KEY_SHA256=digest)
        run = prove(tmp_path, recipe, network="bridge")
    case = only(run)
    assert case.outcome == "failed", run.output
    assert case.message.startswith("image: "), case.message
