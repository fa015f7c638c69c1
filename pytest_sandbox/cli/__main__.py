"""`python -m pytest_sandbox.cli`: the command, where its script is not on PATH."""

from __future__ import annotations

from pytest_sandbox.cli import main

if __name__ == "__main__":
    main()
