"""What an ordinary user gets: measured in a process of that user's, and handed back as JSON.

As root, the user is the one of PYTEST_SANDBOX_TEST_USER (`tester` without it).
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contest import PACE, Bar, Contest, interleave

if TYPE_CHECKING:
    from benchmarks.field import Field

TITLE = "sandbox: create, run `true`, remove, as an ordinary user"
BAR, LIMIT = "rootless runc against direct", 6.0
_KEPT = ("PATH", "LANG", "TZ", "SSL_CERT_FILE")


def contest(field: Field, rounds: int) -> Contest:
    """The contest as an ordinary user; one that could not be is a contest of nobody."""
    if os.geteuid() != 0:
        return measure(field.tar, rounds)
    user = os.environ.get("PYTEST_SANDBOX_TEST_USER") or "tester"
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return _nobody(f"there is no user {user}: useradd -m {user}")
    here = Path(__file__).resolve().parents[1]
    site, home = field.temp / "site", field.temp / "user"
    for name in ("pytest_sandbox", "benchmarks"):
        ignored = shutil.ignore_patterns("*.pyc")
        shutil.copytree(here / name, site / name, ignore=ignored, dirs_exist_ok=True)
    home.mkdir()
    os.chown(home, account.pw_uid, account.pw_gid)
    field.tar.chmod(0o644)
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env |= {"HOME": account.pw_dir, "PYTHONPATH": str(site), "TMPDIR": str(home)}
    env["PYTHONPYCACHEPREFIX"] = str(home / "bytecode")
    words = [sys.executable, "-m", "benchmarks.ordinary", str(field.tar), str(rounds)]
    done = subprocess.run(
        ["setpriv", f"--reuid={user}", f"--regid={account.pw_gid}", "--init-groups", *words],
        cwd=home,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return _nobody(f"the measuring process failed: {said}")
    found = json.loads(done.stdout)
    return judged(Contest(TITLE, found["samples"], notes=found["notes"], skipped=found["skipped"]))


def measure(tar: Path, rounds: int) -> Contest:
    """The contest in this process, which is an ordinary user's."""
    from benchmarks.bundles import Trees
    from benchmarks.field import LAUNCHERS, Field

    with ExitStack() as stack:
        field = Field(stack, tar)
        skipped: dict[str, str] = {}
        peers = Trees(field).ordinary(skipped)
        turns = {**{name: field.whole(name) for name in LAUNCHERS}, **peers}
        info = field.runtime(next(iter(LAUNCHERS))).info()
        found = interleave(turns, rounds, warmup=2, pace=PACE)
        notes = [f"without a cgroup here: {', '.join(info.weak_limits) or 'nothing'}"]
        return judged(Contest(TITLE, found, notes=notes, skipped=skipped))


def judged(contest: Contest) -> Contest:
    """With the bar that ours has to hold."""
    from benchmarks.bundles import ROOTLESS
    from benchmarks.field import DIRECT

    contest.bar(BAR, ROOTLESS, DIRECT, LIMIT, least=True)
    return contest


def _nobody(why: str) -> Contest:
    from benchmarks.field import DIRECT

    return Contest(TITLE, {}, [Bar(BAR, float("nan"), LIMIT, least=True)], skipped={DIRECT: why})


def main() -> None:
    """`python -m benchmarks.ordinary TAR ROUNDS`: the contest as JSON."""
    contest = measure(Path(sys.argv[1]), int(sys.argv[2]))
    document = {"samples": contest.samples, "notes": contest.notes, "skipped": contest.skipped}
    sys.stdout.write(json.dumps(document))


if __name__ == "__main__":
    main()
