"""Many short sandboxes: nothing hangs, clashes or leaks."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

COUNT = {"self": 300, "user": 64}
AT_ONCE = 16


def test_many_at_once(cli, image, clean, record_property):
    def one(number):
        name = ["--name", f"many{number}"] if number % 3 == 0 else []
        began = time.monotonic()
        words = ["run", "--rm", *name, image, "sh", "-c", f"echo {number}; exit {number % 7}"]
        done = cli(*words, timeout=300)
        return number, done, time.monotonic() - began

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(one, range(COUNT[cli.name])))
    wrong = [
        (number, done)
        for number, done, _ in results
        if (done.returncode, done.stdout, done.stderr) != (number % 7, f"{number}\n", "")
    ]
    assert wrong == []
    median = statistics.median(seconds for *_, seconds in results)
    record_property("median_seconds", median)
    print(f"{len(results)} sandboxes, {AT_ONCE} at once: median {median * 1000:.0f} ms")
