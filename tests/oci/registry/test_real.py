"""Push and pull with a real docker-registry, open and with a password; and what skopeo says."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import threading

import pytest

from pytest_sandbox.errors import ImageUnavailable, RegistryError
from pytest_sandbox.oci.platforms import parse_platform
from pytest_sandbox.oci.progress import Lines
from pytest_sandbox.oci.push import push_image
from pytest_sandbox.oci.reference import parse_reference
from pytest_sandbox.oci.registry import Registry
from tests.oci import making
from tests.oci.making import image, index, on
from tests.oci.requiring import program

AMD64, ARM64 = parse_platform("linux/amd64"), parse_platform("linux/arm64")


def two_platforms():
    noise = random.Random(1).randbytes(3_000_000)
    amd = image(making.tar_of({"noise": noise}), making.tar_of({"etc/name": b"amd64"}))
    arm = image(making.tar_of({"etc/name": b"arm64"}), architecture="arm64")
    return index([(amd, on("amd64")), (arm, on("arm64"))])


def push(client, host, name, made, **options):
    below = {each.digest: each.parsed for each in made.manifests}
    return push_image(
        client,
        parse_reference(f"{host}/{name}"),
        made.parsed,
        lambda blob: io.BytesIO(made.blobs[blob.digest]),
        child=lambda entry: below[entry.digest],
        **options,
    )


class Sink(io.BytesIO):
    def restart(self):
        self.seek(0)
        self.truncate()


@pytest.mark.parametrize("chunk", [64 << 20, 1 << 20])
def test_an_index_makes_the_round_trip(registry, chunk):
    made, name = two_platforms(), f"round/trip{chunk}:1"
    out = io.StringIO()
    with Registry(environ={}) as client, Lines(out) as display:
        assert push(client, registry.host, name, made, chunk=chunk, display=display) == made.digest
        reference = parse_reference(f"{registry.host}/{name}")
        assert client.current_digest(reference) == made.digest
        for platform in (AMD64, ARM64):
            found = client.resolve(reference, platform)
            assert found.digest == made.digest
            assert found.indexes[0].raw == made.raw
            for layer in found.manifest.layers:
                sink = Sink()
                client.blob(reference, layer, sink)
                assert sink.getvalue() == made.blobs[layer.digest]
        with pytest.raises(ImageUnavailable, match="linux/amd64, linux/arm64"):
            client.resolve(reference, parse_platform("linux/riscv64"))
    assert out.getvalue().count("done, ") == len(made.blobs)


def test_blobs_are_mounted_across_repositories(registry):
    made = image(making.tar_of({"mounted": random.Random(2).randbytes(100_000)}))
    out = io.StringIO()
    with Registry(environ={}) as client, Lines(out) as display:
        push(client, registry.host, "mount/from:1", made)
        push(
            client,
            registry.host,
            "mount/to:1",
            made,
            mount_from=["mount/none", "mount/from"],
            display=display,
        )
    assert out.getvalue().count(": mounted") == 2


def test_a_password(locked_registry, tmp_path):
    made = image()
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {locked_registry.host: {"username": "me", "password": "geheim"}}})
    )
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    reference = parse_reference(f"{locked_registry.host}/locked/app:1")
    with Registry(environ=environ) as client:
        push(client, locked_registry.host, "locked/app:1", made)
        assert client.resolve(reference, AMD64).digest == made.digest
    with Registry(environ={}) as client, pytest.raises(RegistryError, match="no credentials for"):
        client.resolve(reference, AMD64)


def test_what_is_not_there(registry):
    with Registry(environ={}) as client, pytest.raises(RegistryError) as caught:
        client.resolve(parse_reference(f"{registry.host}/no/such:1"))
    assert caught.value.status == 404


def test_eight_threads_at_once(registry):
    made = image(*[making.tar_of({f"{n}": random.Random(n).randbytes(500_000)}) for n in range(8)])
    got = {}
    with Registry(environ={}) as client:
        push(client, registry.host, "threads/app:1", made)
        reference = parse_reference(f"{registry.host}/threads/app:1")

        def pull(layer):
            sink = Sink()
            client.blob(reference, layer, sink)
            got[layer.digest] = sink.getvalue()

        threads = [threading.Thread(target=pull, args=(one,)) for one in made.parsed.layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {layer.digest: made.blobs[layer.digest] for layer in made.parsed.layers}


def test_skopeo_reads_what_we_pushed_and_we_what_it_pushed(registry, tmp_path):
    skopeo = program("skopeo")
    made = two_platforms()
    ours, theirs = f"{registry.host}/skopeo/ours:1", f"{registry.host}/skopeo/theirs:1"
    with Registry(environ={}) as client:
        push(client, registry.host, "skopeo/ours:1", made)
        plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        copied = subprocess.run(
            [skopeo, "copy", "--all", *plain, f"docker://{ours}", f"docker://{theirs}"],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "REGISTRY_AUTH_FILE": str(tmp_path / "none.json")},
        )
        assert copied.returncode == 0, copied.stderr
        found = client.resolve(parse_reference(theirs), ARM64)
    assert found.digest == made.digest
