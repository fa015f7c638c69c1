"""Image builds: jq, build-essential, and forty sets of packages, with warm package caches and cold
ones. Beside docker build, buildah, and plain apt-get in a chroot, which is the limit.

All install the same packages on the same base, docker and buildah by the Dockerfile that is
customary. Plain apt-get has its lists and archives in its own tree when they are warm; docker and
buildah begin without any, as a build of theirs does.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import debian
from benchmarks.contest import Bar, Contest, interleave, run_process
from benchmarks.field import ENGINE, Field, expect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from pytest_sandbox.images.spec import ImageSpec

OURS, COLD, PLAIN, DOCKER, BUILDAH = (
    "pytest-sandbox",
    "pytest-sandbox, cold",
    "apt-get in a chroot",
    "docker build",
    "buildah build",
)
CUSTOMARY = (
    "FROM {base}\n"
    "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y "
    "--no-install-recommends {names} && rm -rf /var/lib/apt/lists/*\n"
)
"""As the manuals of docker and buildah write it."""
ROUNDS, QUICK_SETS, SETS = 5, 6, 40
OVER_PLAIN, OVER_DOCKER = 1.5, 0.3
NAMES = (
    "advancecomp aspell bison brotli byacc cloc dav1d distcc entr expat fdupes fontconfig gperf "
    "hexedit htop httpie intltool irssi jhead jsonnet lftp lzip m4 miller moreutils mpg123 ncdu "
    "pbzip2 pkgconf pngcrush ragel ripgrep rlwrap strace texinfo tree unixodbc wget zsh zstd"
)
"""Recipes of the corpus that Debian has packages of, by the same name."""


def contests(given: argparse.Namespace) -> Iterator[Contest]:
    """Single packages, then all sets at once."""
    with ExitStack() as stack:
        field = Builds(stack, given)
        rounds = given.rounds or ROUNDS
        for packages in (("jq",), ("build-essential",)):
            yield field.single(packages, rounds)
        sets = corpus_sets(given)
        yield field.many(sets[:QUICK_SETS] if getattr(given, "quick", False) else sets)


def corpus_sets(given: argparse.Namespace) -> list[tuple[str, ...]]:
    """The distinct sets of packages that recipes of the corpus and our own need on Debian; filled
    up to forty with tools of the corpus that Debian has.
    """
    from pytest_sandbox.images.families import load_families
    from pytest_sandbox.images.requirements import requirements_of
    from pytest_sandbox.images.sharing import can_share, names_of
    from pytest_sandbox.images.spec import derive_spec
    from pytest_sandbox.plans.catalogue import Catalogue
    from pytest_sandbox.plans.resolve import resolve
    from pytest_sandbox.recipes.load import load_recipe
    from pytest_sandbox.targets import Target, host_arch

    corpus = given.corpus or os.environ.get("PYTEST_SANDBOX_CORPUS", "")
    own = Path(__file__).resolve().parents[1] / "recipes"
    target, families = Target("linux", host_arch(), "debian"), load_families()
    found: dict[tuple[str, ...], None] = {}
    for folder in [own, *([Path(corpus)] if corpus else [])]:
        files = sorted(folder.rglob("*.toml"))
        catalogue = Catalogue(tuple({file.parent for file in files}))
        for file in files:
            try:
                recipe = load_recipe(file)
                plan = resolve(
                    recipe, target, catalogue=catalogue, versions={}, need_versions=False
                )
                spec = derive_spec(requirements_of(plan, target), target, families=families)
            except Exception:  # what is wrong with a recipe is no matter here
                continue
            if can_share(spec):
                found.setdefault(names_of(spec))
    for name in NAMES.split():
        found.setdefault((name,))
    return list(found)[:SETS]


class Builds:
    """The base, in our store, in docker's, in buildah's, and as a tree; all ends with `stack`."""

    def __init__(self, stack: ExitStack, given: argparse.Namespace) -> None:
        self.stack = stack
        self.skipped: dict[str, str] = {}
        self.field = Field(stack, debian.of(given))
        self.runtime = self.field.runtime(ENGINE)
        self.temp = self.field.temp
        os.environ["PYTEST_SANDBOX_CACHE"] = str(self.temp / "cache")
        self.numbers = itertools.count()
        self.environ = {**os.environ}
        self.tree, self.warm = self.temp / "tree", self.temp / "warm"
        self.fetched: list[Sequence[str]] = []
        self._plain()
        self._docker()
        self._buildah()

    # --- ours -------------------------------------------------------------------------------

    def spec(self, packages: Sequence[str]) -> ImageSpec:
        """The image of some packages on the base."""
        from pytest_sandbox.images.families import load_families
        from pytest_sandbox.images.requirements import SystemRequirements
        from pytest_sandbox.images.spec import derive_spec

        families = load_families(overrides={"debian": debian.NAME})
        needs = SystemRequirements(packages={"apt": tuple(sorted(packages))})
        return derive_spec(needs, self.field.target, families=families)

    def ours(self, sets: Sequence[Sequence[str]], *, cold: bool = False) -> float:
        """Build all of them, as a session does; none is there before or after."""
        from pytest_sandbox.runtimes.image_builds import ImageBuilds, Rules
        from pytest_sandbox.runtimes.oci import build_packages

        if cold:
            build_packages.prune(self.runtime.store, older_than=0.0)
        prefix = f"bench/build-{next(self.numbers)}"
        specs = [self.spec(packages) for packages in sets]
        began = time.perf_counter()
        builds = ImageBuilds(self.runtime, Rules(prefix=prefix), expected=lambda: specs)
        for spec in specs:
            builds.get(spec)
        took = time.perf_counter() - began
        builds.close()
        made = [one for one in self.runtime.images() if one.name.startswith(f"{prefix}:")]
        expect(len(made) >= len({spec.commands for spec in specs}))
        for one in made:
            self.runtime.remove_image(one.name)
        return took

    # --- peers ------------------------------------------------------------------------------

    def _plain(self) -> None:
        if os.geteuid() != 0:
            self.skipped[PLAIN] = "chroot is for root"
            return
        self.tree.mkdir()
        subprocess.run(["tar", "-xf", self.field.tar, "-C", self.tree], check=True)
        shutil.copy("/etc/resolv.conf", self.tree / "etc/resolv.conf")

    def _in_chroot(self, tree: Path, command: str, *, keep: bool = False) -> float:
        """Run it in a fresh overlay over the tree, as a container has it, or (`keep`) in the tree
        itself.
        """
        upper = self.temp / f"chroot-{next(self.numbers)}"
        for name in ("upper", "work", "root"):
            (upper / name).mkdir(parents=True)
        layers = f"lowerdir={tree},upperdir={upper}/upper,workdir={upper}/work"
        mount = "mount --bind" if keep else f"mount -t overlay -o {layers}"
        script = (
            f'{mount} "$1" "$2" && mount -t proc proc "$2/proc" && '
            'exec chroot "$2" sh -ec "export DEBIAN_FRONTEND=noninteractive; $3"'
        )
        words = ["unshare", "-m", "sh", "-c", script, "sh", tree, upper / "root", command]
        took = run_process(words, cwd=self.temp, env=self.environ, expect={0})
        shutil.rmtree(upper)
        return took

    def plain(self, packages: Sequence[str], *, cold: bool = False) -> float:
        """apt-get in a fresh system; where it is warm, update and download do not count."""
        names = " ".join(packages)
        options = "-q -y --no-install-recommends"
        install = f"apt-get {options} install {names}"
        if cold:
            return self._in_chroot(self.tree, f"apt-get -q update; {install}")
        if not self.warm.exists():
            subprocess.run(["cp", "-a", self.tree, self.warm], check=True)
            self._in_chroot(self.warm, "apt-get -q update", keep=True)
        if packages not in self.fetched:
            self._in_chroot(
                self.warm, f"apt-get {options} install --download-only {names}", keep=True
            )
            self.fetched.append(packages)
        return self._in_chroot(self.warm, install)

    def _docker(self) -> None:
        if not self._can(DOCKER, "docker", "info"):
            return
        with self.field.tar.open("rb") as file:
            subprocess.run(
                ["docker", "import", "-", debian.NAME], stdin=file, check=True, capture_output=True
            )
        self.stack.callback(
            subprocess.run, ["docker", "rmi", "-f", debian.NAME], capture_output=True, check=False
        )

    def docker(self, packages: Sequence[str]) -> float:
        """`docker build` of the customary Dockerfile, anew."""
        name = f"bench/build:{next(self.numbers)}"
        words = ["docker", "build", "--no-cache", "-q", "--network=host", "-t", name]
        took = self._build(packages, words)
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=True)
        return took

    def _buildah(self) -> None:
        if not self._can(BUILDAH, "buildah", "--version"):
            return
        run = tempfile.mkdtemp(prefix="b-", dir="/tmp")
        self.stack.callback(shutil.rmtree, run, ignore_errors=True)
        self.where = ["--root", str(self.temp / "buildah"), "--runroot", run]
        file = self.temp / "Containerfile"
        file.write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
        words = ["buildah", *self.where, "build", "-q", "-t", debian.NAME, "-f", file, self.temp]
        (self.temp / ".containerignore").write_text("*\n!base.tar\n", encoding="utf-8")
        if not self.field.tar.is_relative_to(self.temp):
            os.link(self.field.tar, self.temp / "base.tar")
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            self.skipped[BUILDAH] = f"it cannot build here: {done.stderr.strip()[-100:]}"

    def buildah(self, packages: Sequence[str]) -> float:
        """The same with buildah."""
        name = f"bench/build:{next(self.numbers)}"
        # Without a sandbox around its commands: others fail where control groups are hybrid.
        alone = ["--isolation=chroot", "--network=host"]
        words = ["buildah", *self.where, "build", "--no-cache", "-q", *alone, "-t", name]
        took = self._build(packages, words)
        subprocess.run(["buildah", *self.where, "rmi", "-f", name], capture_output=True, check=True)
        return took

    def _build(self, packages: Sequence[str], words: list[str]) -> float:
        folder = self.temp / f"context-{next(self.numbers)}"
        folder.mkdir()
        text = CUSTOMARY.format(base=debian.NAME, names=" ".join(packages))
        (folder / "Dockerfile").write_text(text, encoding="utf-8")
        return run_process([*words, folder], cwd=self.temp, env=self.environ, expect={0})

    def _can(self, name: str, *argv: str) -> bool:
        if shutil.which(argv[0]) is None:
            self.skipped[name] = f"no {argv[0]} on PATH"
        elif subprocess.run(argv, capture_output=True, check=False).returncode:
            self.skipped[name] = f"`{argv[0]}` does not work here"
        else:
            return True
        return False

    # --- contests ---------------------------------------------------------------------------

    def single(self, packages: tuple[str, ...], rounds: int) -> Contest:
        """One build at a time."""
        every: dict[str, Callable[[], Any]] = {
            OURS: lambda: self.ours([packages]),
            PLAIN: lambda: self.plain(packages),
            COLD: lambda: self.ours([packages], cold=True),
            f"{PLAIN}, cold": lambda: self.plain(packages, cold=True),
            DOCKER: lambda: self.docker(packages),
            BUILDAH: lambda: self.buildah(packages),
        }
        turns = {name: call for name, call in every.items() if self._takes_part(name)}
        # A cold build empties what the warm one needs: each of ours is measured by itself.
        warm = {name: call for name, call in turns.items() if name != COLD}
        samples = interleave(warm, rounds)
        samples[COLD] = interleave({COLD: every[COLD]}, max(rounds // 2, 1), warmup=0)[COLD]
        samples = {name: samples[name] for name in turns}
        contest = Contest(f"build: {' '.join(packages)}", samples, skipped=dict(self.skipped))
        contest.bar("with warm caches, over plain apt-get", OURS, PLAIN, OVER_PLAIN)
        contest.bar("with warm caches, over docker build", OURS, DOCKER, OVER_DOCKER)
        return contest

    def many(self, sets: Sequence[tuple[str, ...]]) -> Contest:
        """All of them: ours planned together, the others one after the other; once each."""

        def each(build: Callable[[Sequence[str]], float]) -> list[float]:
            return [sum(build(packages) for packages in sets)]

        samples = {OURS: [0.0], COLD: [self.ours(sets, cold=True)]}
        samples[OURS] = [self.ours(sets)]
        peers: dict[str, Callable[[Sequence[str]], float]] = {
            PLAIN: self.plain, DOCKER: self.docker, BUILDAH: self.buildah,
        }  # fmt: skip
        for name, build in peers.items():
            if self._takes_part(name):
                samples[name] = each(build)
        contest = Contest(
            f"build: {len(sets)} sets of packages", samples, skipped=dict(self.skipped)
        )
        if PLAIN in samples:
            ratio = contest.ratio(OURS, PLAIN)
            contest.bars.append(Bar("all sets, over plain apt-get", ratio, OVER_PLAIN))
        contest.bar("all sets, over docker build", OURS, DOCKER, OVER_DOCKER)
        return contest

    def _takes_part(self, name: str) -> bool:
        return name.partition(",")[0] not in self.skipped


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.exit(main(names=("build",)))
