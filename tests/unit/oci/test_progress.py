"""The progress display: bars on a terminal, few lines elsewhere, nothing if quiet."""

from __future__ import annotations

import io
import threading

from pytest_sandbox.oci import progress
from pytest_sandbox.oci.progress import Bars, Lines, Silent, amount, display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def transfer(show, name="abc123", total=1000):
    with show:
        bar = show.bar(name, total)
        for _ in range(10):
            bar.advance(100)
        show.say("a word in between")
        bar.restart()
        bar.advance(total or 1)
        bar.finish()


def test_the_stream_decides():
    assert isinstance(display(io.StringIO()), Lines)
    assert isinstance(display(Terminal()), Bars)
    assert isinstance(display(Terminal(), quiet=True), Silent)
    assert isinstance(display(io.StringIO(), quiet=True), Silent)


def test_quiet_is_silent():
    out = Terminal()
    transfer(display(out, quiet=True))
    assert out.getvalue() == ""


def test_lines_are_few_and_plain():
    out = io.StringIO()
    transfer(display(out))
    assert out.getvalue() == "a word in between\nabc123: done, 1000 B\n"


def test_now_and_then_a_line_tells_of_all_that_runs(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    show = Lines(out, every=3.0)
    one, two = show.bar("one", 4096), show.bar("two", None)
    for _ in range(100):
        clock[0] += 0.1
        one.advance(10)
        two.advance(20)
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 4
    assert lines[0].startswith("one: ")
    assert " of 4.0 KiB, two: " in lines[0]
    one.finish("already here")
    one.finish()
    assert out.getvalue().splitlines()[-1] == "one: already here"


def test_bars_are_drawn_on_a_terminal():
    out = Terminal()
    transfer(Bars(out))
    text = out.getvalue()
    assert "abc123" in text
    assert "a word in between" in text
    assert "\x1b[" in text
    assert "done" in text


def test_a_size_that_is_not_known_is_shown_too():
    out = Terminal()
    transfer(Bars(out), total=None)
    assert "abc123" in out.getvalue()


def test_what_a_server_says_cannot_drive_the_terminal():
    for show, out in ((Lines(plain := io.StringIO()), plain), (Bars(tty := Terminal()), tty)):
        with show:
            show.say("evil\x1b]0;title\x07 [red]x[/red]")
            show.bar("evil\x1b]0;bar\x07", 1).finish()
        assert "\x1b]0" not in out.getvalue()
        assert "[red]x[/red]" in out.getvalue()


def test_many_threads_write_whole_lines():
    out = io.StringIO()
    show = Lines(out, every=0.0)

    def work(name):
        bar = show.bar(name, 100)
        for _ in range(100):
            bar.advance(1)
        bar.finish()

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = [line for line in out.getvalue().splitlines() if line.endswith("done, 100 B")]
    assert sorted(ends) == [f"t{n}: done, 100 B" for n in range(8)]


def test_amounts():
    assert amount(0) == "0 B"
    assert amount(1536) == "1.5 KiB"
    assert amount(61 << 20) == "61.0 MiB"
    assert amount(3 << 30) == "3.0 GiB"
