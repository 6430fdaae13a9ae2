"""No secret leaves through the log: not by our lines, not by a library's, not by a traceback or its variables."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrator.wiring.logs import HIDDEN, LEAST_CHARACTERS, LogPlan, Redaction, configure_logs

SECRET = 'c4n@ry/"quoted"\\+secret'


@contextlib.contextmanager
def stderr() -> Iterator[io.StringIO]:
    """In place of the real one, with no handlers of pytest's."""
    stream, root = io.StringIO(), logging.getLogger()
    before, root.handlers[:] = list(root.handlers), []
    try:
        with contextlib.redirect_stderr(stream):
            yield stream
    finally:
        root.handlers[:] = before
        structlog.reset_defaults()


def fail_with(secret: str) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    raise ValueError(f"illegal header {headers}")


@pytest.mark.parametrize("form", ["json", "console"])
def test_neither_fields_nor_tracebacks_nor_variables_tell_it(form: str) -> None:
    with stderr() as stream:
        configure_logs(LogPlan("debug", form, (SECRET,)))
        try:
            fail_with(SECRET)
        except ValueError:
            structlog.get_logger().exception("unexpected", url=f"http://user:{SECRET}@host/", nested={"a": [SECRET]})
            logging.getLogger("a.library").exception("Exception in a library %s", SECRET)
    shown = stream.getvalue()
    assert "c4n@ry" not in shown
    assert shown.count(HIDDEN) >= 4
    assert shown.count("Traceback") == 2, "the tracebacks themselves are there"
    assert "headers =" not in shown
    assert "locals" not in shown


def test_what_looks_like_credentials_is_hidden_without_being_known() -> None:
    text = Redaction().text
    assert text("Authorization: Bearer abcdefgh12345") == f"Authorization: Bearer {HIDDEN}"
    assert text("'basic dXNlcjpwYXNzd29yZA=='") == f"'basic {HIDDEN}'"
    assert text("postgresql://app:pass-word@db:5432/x") == f"postgresql://app:{HIDDEN}@db:5432/x"
    for harmless in ("http://host:8000/v1", "a bearer of news", "user@host", "http://host/a@b", 'Bearer realm="x"'):
        assert text(harmless) == harmless


@settings(deadline=None, derandomize=True, database=None)
@given(st.text(min_size=LEAST_CHARACTERS, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_known_secret_is_never_left_in_a_line(secret: str, before: str, after: str) -> None:
    told = Redaction([secret]).text(f"{before}{secret}{after}")
    assert secret not in told.replace(HIDDEN, "\0")


def test_a_plan_does_not_show_what_it_hides() -> None:
    assert SECRET not in repr(LogPlan("info", "json", (SECRET,)))
