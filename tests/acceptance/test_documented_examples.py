"""The examples of docs/fixtures.md and the README do what they say, on a real engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.acceptance.running import run_pytest
from tests.unit.test_docs_examples import blocks

ROOT = Path(__file__).parents[2]
NEEDS_ALPINE = {"test_offline", "test_both[alpine]"}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("page", ["README.md", "docs/fixtures.md", "docs/start.md"])
def test_examples_pass(tmp_path, page):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    found = [text for text in blocks(ROOT / page, "python") if "def test_" in text]
    assert found
    text = "import pytest\n\n\n" + "\n\n".join(found)
    (tmp_path / "test_examples.py").write_text(text, encoding="utf-8")
    run = run_pytest(tmp_path, "test_examples.py", "--strict-markers", "-W", "error")
    assert run.status == 0, run.output
    for name, case in run.cases.items():
        test = name.partition("::")[2]
        wanted = {"passed", "skipped"} if test in NEEDS_ALPINE else {"passed"}
        assert case.outcome in wanted, f"{name}: {case.message}"
