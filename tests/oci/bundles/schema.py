"""The runtime spec's own JSON schema, from its Go module (v1.2.0)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tests.oci.requiring import missing

MODULE = "github.com/opencontainers/runtime-spec@v1.2.0"


@cache
def _schema_folder() -> Path | str:
    """The folder of the schema's files, or why there is none."""
    go = shutil.which("go") or next((p for p in ("/usr/local/go/bin/go",) if Path(p).exists()), "")
    if not go:
        return "no Go to get the runtime spec's schema with"
    made = subprocess.run(
        [go, "mod", "download", "-json", MODULE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "GO111MODULE": "on", "GOFLAGS": "-mod=mod"},
        cwd="/",
    )
    try:
        return Path(json.loads(made.stdout)["Dir"]) / "schema"
    except (ValueError, KeyError):
        return f"the runtime spec's schema cannot be had: {(made.stdout + made.stderr)[-300:]}"


@cache
def _validator() -> Any:
    import referencing
    from jsonschema import Draft4Validator
    from referencing.jsonschema import DRAFT4

    folder = _schema_folder()
    if isinstance(folder, str):
        missing(folder)
    base = "file:///schema/"
    registry: Any = referencing.Registry().with_resources(
        (base + file.name, DRAFT4.create_resource(json.loads(file.read_text())))
        for file in Path(folder).glob("*.json")
    )
    return Draft4Validator({"$ref": base + "config-schema.json"}, registry=registry)


def violations(spec: dict[str, Any]) -> list[str]:
    """What the schema finds wrong with a config.json, as `place: text`."""
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in _validator().iter_errors(spec)
    ]
