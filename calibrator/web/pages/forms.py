"""The forms of the pages: sign in and out, start and cancel a sweep, set and end an override.

A form that succeeds redirects to its page (303), so that a reload does not send it again. One that is refused is
answered with the page itself: it shows the error next to the form, which keeps its values.

Sessions may only write from our own pages (`web.http.auth`), and every attempt is audited (`web.http.audit`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from calibrator.core.publish.snapshot import Override
from calibrator.errors import ConfigurationError
from calibrator.web.http.audit import AuditLog
from calibrator.web.http.auth import Access
from calibrator.web.http.operation import Handler, Operation, ResponseSpec
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import Submission, form_fields
from calibrator.web.http.sessions import is_foreign
from calibrator.web.pages.page import Pages, path_of
from calibrator.web.pages.render import HEADERS, html
from calibrator.web.wire.backends import MAX_OVERRIDE_S, ShortText

MINUTE_S = 60.0


class _Form(BaseModel):
    """Urlencoded. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


class SignInForm(_Form):
    token: SecretStr = Field(default=SecretStr(""), description="a read or operator token")
    then: str = Field(default="/", description="path of the page to continue to")


class SweepForm(_Form):
    reason: str = Field(default="", max_length=200)


class OverrideForm(_Form):
    cap: int = Field(ge=1, le=1_000_000, description="clamped to the configured bounds")
    minutes: float = Field(gt=0, le=MAX_OVERRIDE_S / MINUTE_S, description="until it expires")
    author: ShortText
    reason: ShortText


class ClearForm(_Form):
    author: str = Field(default="", max_length=200)


Act = Callable[[str, Any], Awaitable[str]]  # (backend, form) to the key of a notice


@dataclass(frozen=True, slots=True)
class Forms:
    pages: Pages
    audit_log: AuditLog

    # ------------------------------------------------------------------------------------------------ signing in
    async def sign_in_page(self, request: Request) -> Response:
        return self.ask_to_sign_in(request, _local(request.query_params.get("then", "/")))

    async def sign_in(self, request: Request) -> Response:
        _refuse_other_sites(request)
        fields = await form_fields(request)
        token, then = fields.get("token", "").strip(), _local(fields.get("then", "/"))
        caller = self.pages.gatekeeper.sign_in(token)
        if caller.access is Access.OPEN:
            problem = "Unknown or expired token."
            self.audit_log.add(request, "signIn", caller, HTTPStatus.UNAUTHORIZED, detail=problem)
            return self.ask_to_sign_in(request, then, HTTPStatus.UNAUTHORIZED, problem)
        response = _see_other(then)
        self.pages.gatekeeper.sessions.begin(request, response, token)
        self.audit_log.add(request, "signIn", caller, HTTPStatus.SEE_OTHER)
        return response

    async def sign_out(self, request: Request) -> Response:
        _refuse_other_sites(request)
        response = _see_other("/")
        self.pages.gatekeeper.sessions.end(request, response)
        self.audit_log.add(request, "signOut", self.pages.gatekeeper.caller(request), HTTPStatus.SEE_OTHER)
        return response

    def ask_to_sign_in(
        self, request: Request, then: str, status: HTTPStatus = HTTPStatus.OK, problem: str = ""
    ) -> Response:
        frame = self.pages.frame(request, "Sign in", "/sign-in", is_live=False)
        return html("page_sign_in.html.jinja", frame, status, then=then, problem=problem)

    async def on_problem(self, request: Request, error: Problem) -> Response:
        """Errors as a page: the sign-in form without valid credentials, else the error itself."""
        if error.status is HTTPStatus.UNAUTHORIZED:
            response = self.ask_to_sign_in(request, _local(request.url.path), error.status)
        else:
            frame = self.pages.frame(request, error.status.phrase, request.url.path, is_live=False)
            response = html("page_problem.html.jinja", frame, error.status, problem=error.detail)
        response.headers.update(error.headers)
        if error.status is HTTPStatus.UNAUTHORIZED:  # a Basic challenge would make browsers show their own dialog
            response.headers["WWW-Authenticate"] = 'Bearer realm="calibrator"'
        return response

    # ------------------------------------------------------------------------------------------------- operating
    async def start_sweep(self, request: Request, sent: Submission) -> Response:
        async def act(name: str, form: SweepForm) -> str:
            await self.pages.operator.request_sweep(name, form.reason or "requested on the page")
            return "sweep"

        return await self._do(request, "sweep", sent, act)

    async def cancel_sweep(self, request: Request, _asked: None) -> Response:
        async def act(name: str, _form: None) -> str:
            await self.pages.operator.cancel_sweep(name, "an operator on the page")
            return "cancel"

        return await self._do(request, "cancel", Submission({}), act)

    async def override(self, request: Request, sent: Submission) -> Response:
        async def act(name: str, form: OverrideForm) -> str:
            now = self.pages.clock.wall()
            override = Override(form.cap, form.reason, form.author, now, now + form.minutes * MINUTE_S)
            return "override" if await self.pages.operator.override(name, override) else "unstored"

        return await self._do(request, "override", sent, act)

    async def clear_override(self, request: Request, sent: Submission) -> Response:
        async def act(name: str, form: ClearForm) -> str:
            if not await self.pages.operator.clear_override(name, form.author or "unnamed"):
                raise ConfigurationError("The override has already ended.", "Nothing is left to do.")
            return "clear"

        return await self._do(request, "override", sent, act)

    async def _do(self, request: Request, form: str, sent: Submission, act: Act) -> Response:
        name = self.pages.views.one(request.path_params["name"]).name
        status, problem = HTTPStatus.BAD_REQUEST, sent.problem
        if not problem:
            try:
                done = await act(name, sent.form)
            except ConfigurationError as error:
                status, problem = HTTPStatus.CONFLICT, str(error)
            else:
                return _see_other(f"{path_of(name)}?{urlencode({'done': done})}")
        return await self.pages.show_backend(request, name, status, form=form, problem=problem, values=sent.fields)

    def operations(self, *, writable: bool) -> tuple[Operation, ...]:
        asked = ResponseSpec(200, "The sign-in form", media_type="text/html")
        back = ResponseSpec(303, "Redirects to the page", media_type=None, headers=("Location",))
        if not writable and self.pages.gatekeeper.reading_is_open:
            return ()
        signing = (
            Operation("GET", "/sign-in", "getSignIn", "The sign-in page", self.sign_in_page, (asked,)),
            Operation(
                "POST", "/sign-in", "signIn", "Sign in with a token and get a session cookie", self.sign_in, (back,),
                form=SignInForm, problems=(401, 403, 413),
            ),
            Operation("POST", "/sign-out", "signOut", "End the session", self.sign_out, (back,), problems=(403,)),
        )  # fmt: skip
        return (*signing, *self._acting(back)) if writable else signing

    def _acting(self, back: ResponseSpec) -> tuple[Operation, ...]:
        rows: tuple[tuple[str, str, str, Handler, type[BaseModel] | None], ...] = (
            ("sweep", "formStartSweep", "Form that starts a sweep", self.start_sweep, SweepForm),
            ("cancel", "formCancelSweep", "Form that cancels a sweep", self.cancel_sweep, None),
            ("override", "formOverride", "Form that overrides the cap", self.override, OverrideForm),
            ("clear", "formClearOverride", "Form that ends the override", self.clear_override, ClearForm),
        )
        return tuple(
            Operation(
                "POST", f"/backends/{{name}}/{verb}", operation_id, summary, handler, (back,),
                access=Access.OPERATE, form=form, problems=(400, 404, 409, 413, 503),
            )
            for verb, operation_id, summary, handler, form in rows
        )  # fmt: skip


def _refuse_other_sites(request: Request) -> None:
    if is_foreign(request):
        raise Problem(HTTPStatus.FORBIDDEN, "This form was sent from another site; use the one on this service's page.")


def _local(path: str) -> str:
    """A path of this service only: `//host` and `/\\host` are other sites to a browser."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_ours and "\\" not in path else "/"


def _see_other(location: str) -> Response:
    return RedirectResponse(location, HTTPStatus.SEE_OTHER, headers=HEADERS)
