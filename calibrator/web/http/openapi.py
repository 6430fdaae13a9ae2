"""OpenAPI 3.1, generated from the operation table and the pydantic models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from calibrator.web.http.auth import Access
from calibrator.web.http.operation import Operation, ResponseSpec
from calibrator.web.http.problems import MEDIA_TYPE
from calibrator.web.wire.backends import ProblemDocument

Json = dict[str, object]

REFERENCE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"{(\w+)}")
_SECURITY: dict[Access, list[Json]] = {  # {} = no credentials: reading is open unless a read token is configured
    Access.OPEN: [],
    Access.READ: [{}, {"bearer": []}],
    Access.PAGE: [{}, {"bearer": []}, {"basic": []}],
    Access.OPERATE: [{"bearer": []}],
}
_ACCESS_PROBLEMS = {Access.OPEN: (), Access.READ: (401,), Access.PAGE: (401,), Access.OPERATE: (401, 403)}


def openapi_document(operations: Sequence[Operation], software_version: str) -> Json:
    paths: dict[str, dict[str, Json]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "calibrator",
            "version": software_version,
            "description": "How many requests each LLM backend can have in flight within its latency SLA.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "any user name, the token as password"},
            },
        },
    }


def _schemas(operations: Sequence[Operation]) -> Json:
    answers = {answer.model for operation in operations for answer in operation.answers if answer.model is not None}
    sent = (model for operation in operations for model in (operation.body, operation.form))
    bodies = {model for model in sent if model is not None}
    models = sorted(answers | bodies | {ProblemDocument}, key=lambda model: model.__name__)
    _, document = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    return dict(document["$defs"])


def _operation(operation: Operation) -> Json:
    problems = sorted({*_ACCESS_PROBLEMS[operation.access], *operation.problems})
    answers = {str(answer.status): _answer(answer) for answer in operation.answers}
    document: Json = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "security": _SECURITY[operation.access],
        "parameters": _parameters(operation),
        "responses": {**answers, **{str(status): _problem(status, operation) for status in problems}},
    }
    if operation.body is not None:
        is_required = any(field.is_required() for field in operation.body.model_fields.values())
        document["requestBody"] = {
            "required": is_required,
            "content": {"application/json": {"schema": _ref(operation.body)}},
        }
    if operation.form is not None:
        schema = {"application/x-www-form-urlencoded": {"schema": _ref(operation.form)}}
        document["requestBody"] = {"required": True, "content": schema}
    return document


def _parameters(operation: Operation) -> list[Json]:
    path: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(operation.path)
    ]
    query: list[Json] = []
    if operation.query is not None:
        properties = operation.query.model_json_schema()["properties"]
        query = [{"name": name, "in": "query", "schema": _plain(schema)} for name, schema in properties.items()]
    headers: list[Json] = [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in operation.request_headers
    ]
    return [*path, *query, *headers]


def _plain(schema: Json) -> Json:
    """A query parameter is absent, never null: take the other branch of `anyOf`."""
    branches = schema.get("anyOf")
    if not isinstance(branches, list):
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**kept, **next(branch for branch in branches if branch.get("type") != "null")}


def _answer(answer: ResponseSpec) -> Json:
    document: Json = {"description": answer.description}
    if answer.headers:
        document["headers"] = {name: {"schema": {"type": "string"}} for name in answer.headers}
    if answer.media_type is not None:
        types = (answer.media_type, *answer.other_types)
        document["content"] = {media_type: {"schema": _body(answer, media_type)} for media_type in types}
    return document


def _body(answer: ResponseSpec, media_type: str) -> Json:
    if answer.model is not None:
        return _ref(answer.model)
    return {"type": "object" if media_type == "application/json" else "string"}


def _problem(status: int, operation: Operation) -> Json:
    content: Json = {MEDIA_TYPE: {"schema": _ref(ProblemDocument)}}
    if operation.is_for_people:
        content["text/html"] = {"schema": {"type": "string"}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": REFERENCE.format(model=model.__name__)}
