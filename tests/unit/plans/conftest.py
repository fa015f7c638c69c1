"""The corpus is collected only where it is named."""

from __future__ import annotations

import os

_NAMED = os.environ.get("PYTEST_SANDBOX_CORPUS") and os.environ.get("PYTEST_SANDBOX_FACTS")
collect_ignore = [] if _NAMED else ["test_corpus.py"]
