"""`pytest-sandbox doctor`: what is here, what is missing, the one next step."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

import click
import msgspec

from pytest_sandbox.errors import SandboxError, printable
from pytest_sandbox.provision.proxies import masked
from pytest_sandbox.targets import FAMILIES, Target, host_arch, host_family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.images.families import Family
    from pytest_sandbox.runtimes.base import Runtime
    from pytest_sandbox.runtimes.detect import Candidate
    from pytest_sandbox.settings import Settings


_INSTALL: Final = {
    "debian": "install Docker: apt-get install docker.io",
    "rhel": "install Podman: dnf install podman, then systemctl --user enable --now podman.socket",
    "arch": "install Docker: pacman -S docker, then systemctl start docker",
    "alpine": "install Docker: apk add docker, then rc-service docker start",
    "suse": "install Docker: zypper install docker, then systemctl start docker",
}


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that was looked for; `memory` is in bytes; `source` named the endpoint."""

    runtime: str
    endpoint: str
    source: str
    usable: bool
    version: str = ""
    rootless: bool = False
    cgroups: str = ""
    arches: tuple[str, ...] = ()
    cpus: int = 0
    memory: int = 0
    storage: str = ""
    disk_limit: bool = False
    notes: tuple[str, ...] = ()
    problem: str = ""
    next_step: str = ""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that sandboxes without a daemon need, tried. `id` is stable; `fatal` ones keep
    them from running.
    """

    id: str
    ok: bool
    what: str
    next_step: str = ""
    fatal: bool = False


class BaseState(msgspec.Struct, frozen=True, kw_only=True):
    """A family's base on the engine that a run would use."""

    family: str
    reference: str
    arch: str
    at_hand: bool
    bootstrapped: bool
    suite: str = ""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """An extra CA certificate of this machine."""

    sha256: str
    subject: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `doctor` says."""

    usable: bool
    runtime: str
    """The runtime that a run would use; empty for none."""
    why: str
    """Why `auto` takes it; empty where it was named."""
    engines: list[Engine]
    oci: list[Probe]
    """What runs sandboxes without a daemon (runc or crun), on Linux."""
    bases: list[BaseState]
    host: str
    bootstrap_tool: str
    cannot_run: dict[str, str]
    """Architecture -> why this machine cannot run it and what to do about it."""
    certificates: list[Certificate]
    proxies: dict[str, str]
    mirrors: dict[str, tuple[str, ...]]
    """Registry -> servers that are asked before it, from settings and this machine's own files."""
    plain_http: tuple[str, ...]
    """The registries, beside loopback, that may be asked by plain http."""
    missing: list[str]
    next_step: str


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--runtime", metavar="NAME", help="oci, docker, podman, or a URL of an engine")
@click.option("--families", metavar="FILE", help="A families.toml of your own")
@click.option("--base", multiple=True, metavar="FAMILY=REFERENCE", help="Base image of a family")
def command(*, as_json: bool, **options: object) -> None:
    """Look for engines, bases, proxies and certificates; name what is missing and one next step.

    Exits with 0 where an engine can be used, else with 1. Nothing is changed but for a note of
    what works in the store of images.
    """
    from pytest_sandbox.cli.configuration import families_of
    from pytest_sandbox.cli.project import cli_settings

    settings = cli_settings(**options)
    found = diagnose(os.environ, families_of(settings), settings)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        for line in report(found):
            click.echo(printable(masked(line)))
    sys.exit(0 if found.usable else 1)


def diagnose(
    environ: Mapping[str, str], families: Mapping[str, Family], settings: Settings
) -> Diagnosis:
    """Look at everything: engines are asked, what works without one is tried."""
    from pytest_sandbox.provision.bootstrap import bootstrap_tool, emulation_problem
    from pytest_sandbox.provision.certificates import extra_certificates
    from pytest_sandbox.provision.proxies import proxy_environment
    from pytest_sandbox.runtimes.detect import choose_runtime, survey
    from pytest_sandbox.runtimes.oci.registry_settings import servers

    engines = [_engine(one) for one in survey(environ, settings)]
    missing, steps = [], []
    chosen, why = None, ""
    try:
        choice = choose_runtime(settings.runtime, environ, settings)
        chosen, why = choice.runtime, choice.why
    except SandboxError as wrong:
        missing.append(wrong.what)
        own = wrong.next_step if sys.platform.startswith("linux") else ""
        steps.append(own or _start_an_engine(environ) or wrong.next_step)
    arch = (*chosen.info().arches, host_arch())[0] if chosen else host_arch()
    bases = _bases(chosen, families, arch) if chosen else []
    tool = bootstrap_tool() or ""
    absent = [base.family for base in bases if not base.at_hand]
    if absent:
        missing.append(f"bases not on the engine yet: {', '.join(absent)} (pulled when needed)")
    if not tool:
        missing.append("mmdebstrap: without a registry no Debian base can be made")
    if "debian" in absent and not tool:
        steps.append("apt-get install mmdebstrap (or let the engine reach a registry)")
    elif "debian" in absent:
        steps.append("pytest --sandbox (the first run pulls or makes the bases)")
    elif chosen:
        steps.append("pytest --sandbox")
    mirrors, plain = servers(settings, environ)
    problems = {other: emulation_problem(other) for other in ("amd64", "arm64")}
    return Diagnosis(
        usable=chosen is not None,
        runtime=chosen.info().name if chosen else "",
        why=why,
        engines=engines,
        oci=_oci(environ, settings),
        bases=bases,
        host=f"linux/{host_arch()}/{host_family() or 'unknown'}",
        bootstrap_tool=tool,
        cannot_run={name: f"{why[0]}; {why[1]}" for name, why in problems.items() if why},
        certificates=[_certificate(pem) for pem in extra_certificates(environ)],
        proxies={name: masked(text) for name, text in proxy_environment(environ).items()},
        mirrors=mirrors,
        plain_http=plain,
        missing=missing,
        next_step=steps[0] if steps else "",
    )


def report(found: Diagnosis) -> list[str]:
    """The diagnosis for people."""
    lines = [f"Machine: {found.host}", "", "Engines:"]
    for engine in found.engines:
        where = f"{engine.endpoint or engine.runtime} ({engine.source})"
        if not engine.usable:
            lines.append(f"  no   {engine.problem or where}")
            continue
        kind = "rootless" if engine.rootless else "as root"
        limit = "limits disk" if engine.disk_limit else "cannot limit disk"
        lines.append(f"  yes  {engine.runtime} {engine.version} at {where}")
        lines.append(
            f"       {kind}, cgroups {engine.cgroups}, {', '.join(engine.arches)}, "
            f"{engine.cpus} CPUs, {engine.memory / 1e9:.1f} GB, {engine.storage}, {limit}"
        )
        lines += [f"       note: {note}" for note in engine.notes]
    if found.usable:
        lines += ["", f"Runtime: {found.runtime}" + (f" ({found.why})" if found.why else "")]
    if found.oci:
        lines += ["", "Without a daemon:"]
    for probe in found.oci:
        mark = "yes" if probe.ok else "no " if probe.fatal else "-  "
        lines.append(f"  {mark}  {probe.what}")
        if not probe.ok:
            step = f"; next: {probe.next_step}" if probe.next_step else ""
            lines.append(f"       {probe.id}{step}")
    if found.bases:
        lines += ["", "Bases:"]
    for base in found.bases:
        state = "yes" if base.at_hand else "no "
        how = f", bootstrapped from {base.suite}" if base.bootstrapped else ""
        lines.append(f"  {state}  {base.family}: {base.reference} ({base.arch}{how})")
    lines += ["", f"Bootstrap: {found.bootstrap_tool or 'no tool'}"]
    lines += [f"  {arch}: {why}" for arch, why in found.cannot_run.items()]
    names = [f"{one.subject} ({one.sha256[:16]})" for one in found.certificates]
    lines.append(f"Extra CA certificates: {len(names) or 'none'}")
    lines += [f"  {name}" for name in names]
    shown = {name: text for name, text in found.proxies.items() if name.islower()}
    lines.append(f"Proxies: {', '.join(f'{n}={t}' for n, t in shown.items()) or 'none'}")
    for registry, urls in found.mirrors.items():
        lines.append(f"Mirrors of {registry}: {', '.join(urls)}")
    if found.plain_http:
        lines.append(f"Asked by plain http: {', '.join(found.plain_http)}")
    lines += ["", *(f"Missing: {what}" for what in found.missing)]
    lines.append(f"Next step: {found.next_step or 'nothing'}")
    return lines


def _start_an_engine(environ: Mapping[str, str]) -> str:
    """The step that gets this machine an engine, unless the user named one that does not answer."""
    if any(environ.get(name) for name in ("DOCKER_HOST", "DOCKER_CONTEXT")):
        return ""
    path = environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    if shutil.which("dockerd", path=path):
        return "start Docker: systemctl start docker"
    if shutil.which("podman", path=path):
        return "start Podman's socket: systemctl --user enable --now podman.socket"
    return _INSTALL.get(host_family(), "")


def _oci(environ: Mapping[str, str], settings: Settings) -> list[Probe]:
    """The probes of sandboxes without a daemon, all of them tried anew."""
    if not sys.platform.startswith("linux"):
        return []
    from pytest_sandbox.folders import data_folder
    from pytest_sandbox.oci.ids import find_ids
    from pytest_sandbox.oci.probes import probe_all
    from pytest_sandbox.oci.store import Store
    from pytest_sandbox.oci.supervisor import Supervisor
    from pytest_sandbox.runtimes.oci.machine import try_launcher

    supervisor = Supervisor(find_ids)
    try:
        store = Store(data_folder(environ) / "oci", supervisor, settings.oci_snapshotter)
        host = probe_all(
            store,
            engine=settings.oci_engine.removeprefix("auto"),
            snapshotter=settings.oci_snapshotter,
            environ=environ,
            fresh=True,
            thorough=True,
        )
        findings = list(host.findings)
        if host.usable:
            findings.append(try_launcher(host, supervisor, store))
    except SandboxError as wrong:
        return [Probe(id="store", ok=False, what=wrong.what, next_step=wrong.next_step, fatal=True)]
    finally:
        supervisor.close()
    return [
        Probe(id=one.id, ok=one.ok, what=one.what, next_step=one.next_step, fatal=one.fatal)
        for one in findings
    ]


def _engine(one: Candidate) -> Engine:
    info = one.info
    if info is None:
        return Engine(
            runtime=one.runtime,
            endpoint=masked(one.endpoint),
            source=one.source,
            usable=False,
            problem=masked(one.problem),
            next_step=one.next_step,
        )
    return Engine(
        runtime=info.name,
        endpoint=masked(one.endpoint),
        source=one.source,
        usable=True,
        version=info.version,
        rootless=info.rootless,
        cgroups=info.cgroups,
        arches=info.arches,
        cpus=info.cpus,
        memory=info.memory,
        storage=info.storage,
        disk_limit=info.disk_limit,
        notes=info.notes,
    )


def _bases(runtime: Runtime, families: Mapping[str, Family], arch: str) -> list[BaseState]:
    from pytest_sandbox.provision.bases import find_base
    from pytest_sandbox.runtimes.bases import at_hand

    found = []
    for name in FAMILIES:
        family = families.get(name)
        if family is None or arch not in family.arches:
            continue
        recorded = find_base(family.image, arch)
        try:
            info = at_hand(runtime, family.image, Target("linux", arch, name))
        except SandboxError:
            info = None
        own = recorded is not None and info is not None and info.name != family.image
        found.append(
            BaseState(
                family=name,
                reference=info.name if info else family.image,
                arch=arch,
                at_hand=info is not None,
                bootstrapped=own,
                suite=recorded.suite if recorded and own else "",
            )
        )
    return found


def _certificate(pem: str) -> Certificate:
    from cryptography import x509

    from pytest_sandbox.provision.certificates import fingerprint

    try:
        subject = x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string()
    except ValueError:
        subject = "unreadable"
    return Certificate(sha256=fingerprint(pem), subject=subject)
