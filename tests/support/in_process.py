"""A verb of the command line in the test's own process, without the second that a new interpreter takes.

For verbs that leave nothing behind in their process, such as `check`; others are run as programs
(`support.service_process.run_calibrator`, which this stands in for).
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from calibrator.cli import main


def run_in_process(
    *arguments: str | Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As if it had been typed, in this environment with `environ`."""
    typed = ["calibrator", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", typed)
        for name, value in (environ or {}).items():
            patched.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    assert code is None or isinstance(code, int), code
    return subprocess.CompletedProcess(typed, code or 0, out.getvalue(), err.getvalue())
