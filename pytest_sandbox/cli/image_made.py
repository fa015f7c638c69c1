"""The verbs of `pytest-sandbox image` for what is made here: list, build, bootstrap, prune."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from pytest_sandbox.cli.configuration import (
    catalogue_for,
    chosen_targets,
    families_of,
    recipe_files,
    recipe_options,
)
from pytest_sandbox.cli.image_store import collect, forget_packages, stored_images
from pytest_sandbox.cli.project import cli_settings
from pytest_sandbox.errors import (
    Blame,
    ImageUnavailable,
    RuntimeUnavailable,
    SandboxError,
    printable,
)
from pytest_sandbox.settings import parse_age
from pytest_sandbox.targets import FAMILIES, Target, arch_from_machine, host_arch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_sandbox.images.spec import ImageSpec
    from pytest_sandbox.oci.images import Image
    from pytest_sandbox.runtimes.base import ImageInfo, Runtime
    from pytest_sandbox.settings import Settings


OCI: Final = "oci"
"""The runtime whose images are in the store."""


class ImageLine(msgspec.Struct, frozen=True, kw_only=True):
    """One image. `kind`: image, installed, base, kept, or pulled (or imported); `runtime`: the
    engine that has it, oci for the store; `age` and `last_use`: seconds ago; `size`: bytes."""

    name: str
    kind: str
    family: str
    arch: str
    size: int
    age: float
    last_use: float | None
    digest: str
    runtime: str
    present: bool = True
    """False for a recorded base that this engine does not have (it is imported when needed)."""


def _runtime_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--runtime", metavar="NAME", help="oci (the store), docker, podman, or a URL of an engine"
    )(function)


@click.command("list")
@_runtime_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_command(*, runtime: str | None, as_json: bool) -> None:
    """List the images that were made here, built ones, bases, kept sandboxes, and those in the
    store."""
    settings = cli_settings(runtime=runtime)
    lines: list[ImageLine] = []
    engine = _engine_if_any(settings)
    if engine is not None:
        lines += _lines(engine, settings.image_prefix, engine.info().name)
    known = {(line.name, line.arch) for line in lines if line.runtime == OCI}
    if settings.runtime in {OCI, "auto", ""}:
        stored = map(partial(_stored_line, settings.image_prefix), stored_images())
        lines += [line for line in stored if (line.name, line.arch) not in known]
    if as_json:
        for line in lines:
            click.echo(msgspec.json.encode(line).decode())
        return
    if not lines:
        click.echo("no images yet; they are made when recipes need them")
        return
    _table(
        ("NAME", "RUNTIME", "KIND", "FAMILY", "ARCH", "SIZE", "AGE", "LAST USE"),
        [
            (
                line.name,
                line.runtime,
                line.kind,
                line.family,
                line.arch,
                _megabytes(line.size) if line.present else "not here",
                _ago(line.age),
                "" if line.last_use is None else _ago(line.last_use),
            )
            for line in lines
        ],
    )


@click.command("build")
@recipe_options
@click.option("--rebuild", is_flag=True, help="Build even what is at hand.")
@click.option("--offline", is_flag=True, help="Neither pull, nor bootstrap, nor build.")
@_runtime_option
def build(
    paths: tuple[str, ...],
    targets: tuple[str, ...],
    extra: Sequence[str],
    *,
    rebuild: bool,
    **options: Any,
) -> None:
    """Build the images of recipes, for Debian on the engine's architecture or --target.

    Prints one line an image. Exits with 1 where one could not be built.
    """
    from pytest_sandbox.images.requirements import requirements_of
    from pytest_sandbox.images.spec import derive_spec
    from pytest_sandbox.plans.resolve import resolve
    from pytest_sandbox.plans.versions import parse_versions
    from pytest_sandbox.provision.bases import base_digests
    from pytest_sandbox.provision.certificates import extra_certificates
    from pytest_sandbox.recipes.load import load_recipe
    from pytest_sandbox.runtimes.image_builds import ImageBuilds, Rules

    settings = cli_settings(**options)
    files = recipe_files(paths)
    catalogue = catalogue_for(paths, extra, settings)
    families = families_of(settings)
    versions = parse_versions(settings.version)
    engine = _engine(settings)
    arch = (*engine.info().arches, host_arch())[0]
    chosen = chosen_targets(targets, (Target("linux", arch, "debian"),))
    rules = Rules(
        prefix=settings.image_prefix,
        rebuild=rebuild,
        rebuild_token=f"{os.getpid()}-{time.time()}",
        pull=settings.pull,  # type: ignore[arg-type]  # checked when read
        offline=settings.offline,
        max_age=settings.image_age,
        network=settings.build_network,  # type: ignore[arg-type]  # same
        limits=settings.build_limits(),
        timeout=settings.build_timeout,
    )
    failed = False

    def complain(where: str, wrong: SandboxError) -> None:
        nonlocal failed
        failed = True
        click.echo(f"pytest-sandbox: {where}: {wrong}", err=True)
        if wrong.details:
            click.echo(wrong.details, err=True)

    wanted: list[tuple[str, str, ImageSpec]] = []
    for path in files:
        for target in chosen:
            where = f"{path.name} on {target}"
            try:
                recipe = load_recipe(path)
                plan = resolve(
                    recipe, target, catalogue=catalogue, versions=versions, need_versions=False
                )
                spec = derive_spec(
                    requirements_of(plan, target),
                    target,
                    families=families,
                    certificates=extra_certificates(),
                    base_digests=base_digests(target.arch),
                )
            except SandboxError as wrong:
                complain(where, wrong)
            else:
                wanted.append((f"{recipe.name} on {target}", where, spec))
    builds = ImageBuilds(engine, rules, expected=lambda: [one[2] for one in wanted], say=_say)
    try:
        for name, where, spec in wanted:
            try:
                done = builds.get(spec)
            except SandboxError as wrong:
                complain(where, wrong)
                continue
            how = "at hand" if done.hit else f"made in {done.seconds:.1f} s"
            click.echo(f"{name}: {done.info.name} ({_megabytes(done.info.size)}, {how})")
    finally:
        builds.close()
    sys.exit(1 if failed else 0)


@click.command("bootstrap")
@click.argument("family", metavar="FAMILY", type=click.Choice(FAMILIES))
@click.option("--suite", default="", metavar="NAME", help="Like bookworm; default: the base's own.")
@click.option("--arch", default="", metavar="ARCH", help="amd64 or arm64; default: this machine's.")
@click.option("--mirror", default=None, metavar="URL", help="Default: this machine's own.")
@click.option("--families", metavar="FILE", help="A families.toml of your own")
@click.option("--base", multiple=True, metavar="FAMILY=REFERENCE", help="Base image of a family")
@_runtime_option
def bootstrap(family: str, *, suite: str, arch: str, mirror: str | None, **options: Any) -> None:
    """Make a minimal base of FAMILY from this machine's package mirror, without a registry.

    It becomes the family's base, under the name that families.toml gives. Another --suite takes
    the place of the one there.
    """
    from pytest_sandbox.runtimes.bases import bootstrap_base, suite_of

    settings = cli_settings(**options)
    known = families_of(settings)[family]
    arch = arch_from_machine(arch) if arch else host_arch()
    target = Target.parse(f"linux/{arch}/{family}")
    if settings.offline:
        msg = f"a base of {family} cannot be bootstrapped in an offline run"
        raise ImageUnavailable(msg, blame=Blame.HOST, next_step="unset sandbox_offline")
    began = time.monotonic()
    own = known.suite or suite_of(known.image)
    base, info = bootstrap_base(
        _engine(settings), known.image, target, suite=suite or own, mirror=mirror, say=_say
    )
    click.echo(
        f"{info.name}: {base.suite} for {base.arch}, {_megabytes(base.size)}, "
        f"sha256 {base.sha256}, {time.monotonic() - began:.1f} s"
    )
    if own and base.suite != own:
        click.echo(f"note: under that name the base of {family} is {base.suite} now, not {own}")


@click.command("prune")
@click.option(
    "--all", "everything", is_flag=True, help="All of them, kept sandboxes and bases too."
)
@click.option("--older-than", default="7d", metavar="AGE", help="Not used for so long (7d).")
@_runtime_option
def prune_command(*, everything: bool, older_than: str, runtime: str | None) -> None:
    """Remove images that were not used lately: of engines only what was made here, of the store
    all but pinned ones and those of running sandboxes, and package lists and archives of builds."""
    from pytest_sandbox.runtimes.last_use import prune

    settings = cli_settings(runtime=runtime)
    engine = _engine_if_any(settings)
    age = parse_age(older_than)
    removed: list[tuple[str, int]] = []
    if engine is not None:
        gone = prune(
            engine, older_than=age, everything=everything, prefix=settings.image_prefix, say=_say
        )
        for info in _kept(engine):
            if everything or time.time() - info.created > age:
                engine.remove_image(info.name)
                gone.append(info)
        removed += [(info.name, info.size) for info in gone]
    swept, packages = None, 0
    if settings.runtime in {OCI, "auto", ""}:
        packages = forget_packages(older_than=0.0 if everything else age)
        swept = collect(older_than=0.0 if everything else age)
        removed += [(i.reference.familiar, i.size) for i in swept.images] if swept else []
    for name, size in removed:
        click.echo(f"removed {name} ({_megabytes(size)})")
    if packages:
        click.echo(f"package lists and archives removed, {_megabytes(packages)} freed")
    if swept is not None and (swept.layers or swept.blobs):
        count = f"{len(swept.layers)} layers and {len(swept.blobs)} blobs"
        click.echo(f"{count} of the store removed, {_megabytes(swept.bytes)} freed")
    elif not (removed or packages):
        click.echo("nothing to remove")
    if removed:
        click.echo(f"{len(removed)} images removed")


def _engine_if_any(settings: Settings) -> Runtime | None:
    """The engine; None where none was asked for and none answers, or the store alone is meant."""
    if settings.runtime == OCI:
        return None
    try:
        return _engine(settings)
    except RuntimeUnavailable as missing:
        if settings.runtime not in {"auto", ""}:
            raise
        _say(f"note: no engine: {missing.what}")
        return None


def _engine(settings: Settings) -> Runtime:
    from pytest_sandbox.runtimes.detect import find_runtime

    try:
        return find_runtime(settings.runtime, os.environ, settings)
    except RuntimeUnavailable as missing:
        missing.next_step = missing.next_step or "pytest-sandbox doctor"
        raise


def _kept(engine: Runtime) -> list[ImageInfo]:
    from pytest_sandbox.runtimes.kept import KEPT

    return [info for info in engine.images() if info.name.rpartition(":")[0].endswith(KEPT)]


def _lines(engine: Runtime, prefix: str, runtime: str) -> Iterator[ImageLine]:
    from pytest_sandbox.images.name import FAMILY_LABEL
    from pytest_sandbox.runtimes.bases import base_name
    from pytest_sandbox.runtimes.last_use import (
        INSTALLED,
        cached_images,
        imported_bases,
        last_use,
    )

    now = time.time()
    for base, info in imported_bases(engine):
        yield ImageLine(
            name=base_name(base.reference, base.arch),
            kind="base",
            family="debian",
            arch=base.arch,
            size=info.size if info else base.size,
            age=now - base.created,
            last_use=None,
            digest=f"sha256:{base.sha256}",
            runtime=runtime,
            present=info is not None,
        )
    for kind, name in (("image", prefix), ("installed", INSTALLED)):
        for info in cached_images(engine, name):
            family = info.labels.get(FAMILY_LABEL, "")
            yield _line(info, kind, family, now - last_use(info), runtime)
    for info in _kept(engine):
        yield _line(info, "kept", info.labels.get(FAMILY_LABEL, ""), None, runtime)


def _stored_line(prefix: str, image: Image) -> ImageLine:
    from pytest_sandbox.images.name import FAMILY_LABEL
    from pytest_sandbox.runtimes.kept import KEPT
    from pytest_sandbox.runtimes.last_use import INSTALLED, repository

    kinds = {prefix: "image", INSTALLED: "installed", KEPT: "kept"}
    now = time.time()
    name = image.reference.familiar
    return ImageLine(
        name=name,
        kind=kinds.get(repository(name), "pulled"),
        family=image.labels.get(FAMILY_LABEL, ""),
        arch=image.platform.architecture,
        size=image.size,
        age=now - (image.created or image.stored),
        last_use=now - image.last_use,
        digest=image.digest or image.config_digest,
        runtime=OCI,
    )


def _line(
    info: ImageInfo, kind: str, family: str, last_use: float | None, runtime: str
) -> ImageLine:
    return ImageLine(
        name=info.name,
        kind=kind,
        family=family,
        arch=info.arch,
        size=info.size,
        age=time.time() - info.created,
        last_use=last_use,
        digest=info.digest,
        runtime=runtime,
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        click.echo(
            "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _say(line: str) -> None:
    from pytest_sandbox.provision.proxies import masked

    click.echo(printable(masked(line)), err=True)
