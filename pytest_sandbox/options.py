"""Every setting of a run in one table: `--sandbox-NAME`, PYTEST_SANDBOX_NAME, ini `sandbox_NAME`.

Every pytest run imports this for its options, with or without a sandbox: it stays light (no
dataclasses, whose making costs milliseconds). How values are read stands in settings.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Kind = Literal["text", "flag", "int", "count", "float", "size", "age", "list", "path"]


class Setting(NamedTuple):
    """One row: `name` with dashes, how its text is read, and what it means."""

    name: str
    kind: Kind
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name with underscores, as in the ini key and in Settings."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"PYTEST_SANDBOX_{self.key.upper()}"


RUNTIMES: Final = ("auto", "oci", "docker", "podman", "fake")
"""The names that `--sandbox-runtime` knows; it takes an address (`unix://...`) too."""

SETTINGS: Final = (
    Setting("runtime", "text", "Engine: auto takes runc or crun, else Docker or Podman", "NAME"),
    Setting("target", "list", "Systems to install on, like linux/*/alpine or debian", "GLOB"),
    Setting("recipes", "list", "Where recipes lie, relative to the rootdir", "GLOB"),
    Setting("timeout", "float", "Wall clock of one sandbox in seconds", "SECONDS"),
    Setting("memory", "size", "Memory of one sandbox, swap included", "SIZE"),
    Setting("cpus", "float", "CPUs of one sandbox", "N"),
    Setting("pids", "int", "Processes and threads in one sandbox", "N"),
    Setting("nofile", "int", "Open files of one process in a sandbox", "N"),
    Setting("disk", "size", "Disk space of one sandbox", "SIZE"),
    Setting("output", "size", "Bytes that one command may write to one stream", "SIZE"),
    Setting(
        "network",
        "text",
        "Network of sandboxes while installing",
        choices=("none", "bridge", "host"),
    ),
    Setting("version", "list", "Version of a recipe, where a template needs one", "NAME=VERSION"),
    Setting(
        "keep",
        "text",
        "Keep systems to look into them with `pytest-sandbox shell`",
        choices=("never", "failed", "always"),
    ),
    Setting("pool", "count", "Sandboxes of one kind that are started ahead (0: none)", "N"),
    Setting("rebuild", "flag", "Build images and installations anew"),
    Setting("offline", "flag", "Never pull, bootstrap or build with the network"),
    Setting("require", "flag", "Fail where a test would be skipped for want of an engine"),
    Setting("pull", "text", "When base images are pulled", choices=("missing", "always", "never")),
    Setting("families", "path", "A families.toml of your own", "FILE"),
    Setting("base", "list", "Base image of a family", "FAMILY=REFERENCE"),
    Setting("image-age", "age", "Rebuild images older than this (7d)", "AGE"),
    Setting("image-prefix", "text", "Repository of cached images", "NAME"),
    Setting("build-network", "text", "Network of image builds", choices=("none", "bridge", "host")),
    Setting("build-timeout", "float", "Wall clock of one image build in seconds", "SECONDS"),
    Setting("build-memory", "size", "Memory of one image build", "SIZE"),
    Setting("build-cpus", "float", "CPUs of one image build", "N"),
    Setting(
        "launcher",
        "text",
        "What starts sandboxes without a daemon",
        choices=("auto", "direct", "runc", "crun"),
    ),
    Setting("oci-engine", "text", "Without a daemon: auto, runc, crun, or a path of one", "NAME"),
    Setting(
        "oci-snapshotter",
        "text",
        "How root file systems are made without a daemon",
        choices=("auto", "overlay", "fuse-overlayfs", "reflink", "copy"),
    ),
    Setting(
        "weak-limits",
        "text",
        "Limits that no control group can set: enforced by weaker means, or refused",
        choices=("allow", "refuse"),
    ),
    Setting("registry-mirror", "list", "Server that is asked before a registry", "REGISTRY=URL"),
    Setting("registry-insecure", "list", "Registry that may be asked by plain http", "HOST[:PORT]"),
    Setting(
        "registry-realm",
        "list",
        "Token server that may see the credentials of a registry",
        "REGISTRY=URL",
    ),
    Setting("registry-timeout", "float", "How long a registry may be silent, seconds", "SECONDS"),
    Setting("durations", "flag", "Show where the time of the run went, item by item"),
    Setting("image-bound", "list", "Most that an image may bring, like layers=600", "NAME=VALUE"),
)

BOUNDS: Final = (
    "manifest",
    "config",
    "index-depth",
    "layers",
    "entries",
    "layer-bytes",
    "ratio",
    "record",
    "zstd-window",
    "path",
)
"""The names that `--sandbox-image-bound` knows (see oci.bounds)."""
