"""`pytest-sandbox spec`: the Dockerfile of a recipe's image on a target, and the image's name."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pytest_sandbox.cli.configuration import (
    catalogue_for,
    chosen_targets,
    default_target,
    families_of,
    recipe_files,
    recipe_options,
)
from pytest_sandbox.cli.project import cli_settings
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.images.dockerfile import context_names, dockerfile
from pytest_sandbox.images.name import image_hash, image_name
from pytest_sandbox.images.requirements import requirements_of
from pytest_sandbox.images.spec import ImageSpec, derive_spec
from pytest_sandbox.plans.resolve import resolve
from pytest_sandbox.plans.versions import parse_versions
from pytest_sandbox.recipes.load import load_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("spec")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    paths: tuple[str, ...],
    targets: tuple[str, ...],
    extra: Sequence[str],
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the Dockerfile of each recipe's image, after its name in a comment.

    For Debian on this architecture unless --target names others. Exits with 1 where there is
    no image.
    """
    from pytest_sandbox.provision.bases import base_digests
    from pytest_sandbox.provision.certificates import extra_certificates

    settings = cli_settings(**options)
    chosen = chosen_targets(targets, default_target())
    catalogue = catalogue_for(paths, extra, settings)
    families = families_of(settings)
    versions = parse_versions(settings.version)
    failed = False
    for path in recipe_files(paths):
        for target in chosen:
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
                failed = True
                click.echo(f"pytest-sandbox: {wrong}", err=True)
                continue
            name = image_name(spec, settings.image_prefix)
            if as_json:
                found = {"path": str(path), "name": recipe.name, **_document(spec, name)}
                click.echo(msgspec.json.encode(found).decode())
            else:
                what = f"{name}  (the plain base: nothing to add)" if spec.plain else name
                click.echo(f"# {recipe.name} on {target}: {what}\n{dockerfile(spec)}", nl=False)
    sys.exit(1 if failed else 0)


def _document(spec: ImageSpec, name: str) -> dict[str, Any]:
    return {
        "target": str(spec.target),
        "image": name,
        "plain": spec.plain,
        "hash": "" if spec.plain else image_hash(spec),
        "base": spec.base,
        "base_digest": spec.base_digest,
        "packages": spec.packages,
        "repositories": spec.repositories,
        "keys": spec.keys,
        "groups": spec.groups,
        "notices": spec.notices,
        "context": context_names(spec),
        "dockerfile": dockerfile(spec),
    }
