"""`/v1/session` and `/v1/audit`.

| | |
|---|---|
| `GET /v1/session` | what the caller may do, so that a page shows the right controls |
| `POST /v1/session` with `{"token": ...}` | 200 and a cookie (`web.http.sessions`), or 401; refused from other sites |
| `DELETE /v1/session` | removes the cookie |
| `GET /v1/audit` | the latest entries of this instance, for operators |
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from calibrator.core.report.formats import timestamp
from calibrator.web.http.audit import AuditLog
from calibrator.web.http.auth import Access, Caller, Gatekeeper
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.problems import Problem
from calibrator.web.http.requests import json_answer, parsed_body, parsed_query
from calibrator.web.http.sessions import is_foreign
from calibrator.web.wire.access import AuditList, AuditQuery, SessionDocument, SignIn

PATH = "/v1/session"


@dataclass(frozen=True, slots=True)
class SessionApi:
    gatekeeper: Gatekeeper
    audit_log: AuditLog

    async def show(self, request: Request) -> Response:
        return json_answer(self._document(self.gatekeeper.caller(request)))

    async def begin(self, request: Request) -> Response:
        _refuse_other_sites(request)
        token = (await parsed_body(SignIn, request)).token.get_secret_value()
        caller = self.gatekeeper.sign_in(token)
        if caller.access is Access.OPEN:
            detail = "Unknown or expired token."
            self.audit_log.add(request, "beginSession", caller, HTTPStatus.UNAUTHORIZED, detail=detail)
            raise Problem(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": 'Bearer realm="calibrator"'})
        response = Response(media_type="application/json")
        ends_at = self.gatekeeper.sessions.begin(request, response, token)
        document = self._document(caller).model_copy(update={"by": "session", "ends_at": timestamp(ends_at)})
        response.body = document.model_dump_json().encode()
        response.headers["Content-Length"] = str(len(response.body))
        self.audit_log.add(request, "beginSession", caller, HTTPStatus.OK)
        return response

    async def end(self, request: Request) -> Response:
        _refuse_other_sites(request)
        response = Response(status_code=HTTPStatus.NO_CONTENT)
        self.gatekeeper.sessions.end(request, response)
        self.audit_log.add(request, "endSession", self.gatekeeper.caller(request), HTTPStatus.NO_CONTENT)
        return response

    async def audit(self, request: Request) -> Response:
        return json_answer(AuditList(entries=self.audit_log.entries(parsed_query(AuditQuery, request).limit)))

    def _document(self, caller: Caller) -> SessionDocument:
        can_read = caller.access is Access.READ or self.gatekeeper.reading_is_open
        by: Literal["session", "token"] = "session" if caller.has_session else "token"
        return SessionDocument(
            access="operate" if caller.access is Access.OPERATE else "read" if can_read else "none",
            by="nothing" if caller.access is Access.OPEN else by,
            writes_exist=any(self.gatekeeper.operator_tokens()),
        )

    def operations(self, *, writable: bool) -> tuple[Operation, ...]:
        """Without any token nobody can sign in, and without an operator token there is nothing to audit."""
        shown = Operation(
            "GET",
            PATH,
            "getSession",
            "What the caller may do",
            self.show,
            (ResponseSpec(200, "What the caller may do", SessionDocument),),
        )
        signing = (
            Operation(
                "POST",
                PATH,
                "beginSession",
                "Sign a browser in: exchange a token for a session cookie",
                self.begin,
                (ResponseSpec(200, "Signed in", SessionDocument, headers=("Set-Cookie",)),),
                body=SignIn,
                problems=(400, 401, 403, 413),
            ),
            Operation(
                "DELETE",
                PATH,
                "endSession",
                "Sign out",
                self.end,
                (ResponseSpec(204, "Signed out", media_type=None, headers=("Set-Cookie",)),),
                problems=(403,),
            ),
        )
        audited = Operation(
            "GET",
            "/v1/audit",
            "listAudit",
            "The latest attempts to change something on this instance, newest first",
            self.audit,
            (ResponseSpec(200, "The entries", AuditList),),
            access=Access.OPERATE,
            query=AuditQuery,
            problems=(400,),
        )
        signs_in = writable or not self.gatekeeper.reading_is_open
        return (shown, *(signing if signs_in else ()), *((audited,) if writable else ()))


def _refuse_other_sites(request: Request) -> None:
    if is_foreign(request):
        raise Problem(HTTPStatus.FORBIDDEN, "Signing in or out from another site is not allowed.")
