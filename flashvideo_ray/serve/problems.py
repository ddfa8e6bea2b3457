"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from flashvideo_ray.errors import InputError

_SHOWN = 20  # wrong fields named in one answer


class Problem(HTTPException):
    """An answer that is an error. `detail` says what is wrong and what to do."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, detail, dict(headers or {}))
        self.errors = list(errors)


def problem_response(problem: HTTPException) -> JSONResponse:
    """The answer for a problem."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status_code).phrase,
        "status": problem.status_code,
        "detail": problem.detail,
    }
    errors = getattr(problem, "errors", None)
    if errors:
        content["errors"] = errors
    return JSONResponse(
        content, problem.status_code, headers=dict(problem.headers or {}), media_type="application/problem+json"
    )


def install(app: FastAPI) -> None:
    """Have the application answer with problems, whatever goes wrong."""

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem_response(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        errors = [
            {"field": ".".join(str(part) for part in issue["loc"][1:]), "message": issue["msg"]}
            for issue in error.errors()[:_SHOWN]
        ]
        return problem_response(Problem(422, "The request is not as expected.", errors=errors))

    async def wrong(request: Request, error: Exception) -> JSONResponse:
        return problem_response(Problem(422, str(error)))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return problem_response(Problem(500, f"Unexpected: {type(error).__name__}; the service's log says more."))

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(InputError, wrong)
    app.add_exception_handler(Exception, unexpected)
