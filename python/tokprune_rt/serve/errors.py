"""What a request can end with other than its result."""

from __future__ import annotations

from typing import Any, Literal

Dialect = Literal["tei", "openai"]

# The status codes and kinds of text-embeddings-inference, with OpenAI's (type, code) for each.
_OPENAI = {
    "Empty": ("invalid_request_error", None),
    "Validation": ("invalid_request_error", None),
    "Tokenizer": ("invalid_request_error", None),
    "NotFound": ("invalid_request_error", "model_not_found"),
    "Unauthorized": ("invalid_request_error", "invalid_api_key"),
    "Overloaded": ("rate_limit_error", "rate_limit_exceeded"),
    "Backend": ("server_error", None),
    "Timeout": ("server_error", "timeout"),
    "Unhealthy": ("server_error", None),
}


class ServeError(Exception):
    """A request that is refused or failed.

    Attributes:
        status: the HTTP status.
        kind: ``error_type`` of text-embeddings-inference's error bodies.
        param: the field of the request that is wrong, for OpenAI's.
        retry_after: seconds after which another try may succeed.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.retry_after = retry_after

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """The error as text-embeddings-inference or OpenAI writes it."""
        if dialect == "tei":
            return {"error": str(self), "error_type": self.kind}
        kind, code = _OPENAI[self.kind]
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": code},
        }


def empty(what: str) -> ServeError:
    """Nothing to work on: 400."""
    return ServeError(400, "Empty", f"{what} is empty", param=what)


def invalid(message: str, param: str | None = None) -> ServeError:
    """A request that says something wrong: 422."""
    return ServeError(422, "Validation", message, param=param)


def too_large(message: str, param: str | None = None) -> ServeError:
    """A body, a batch or a text beyond a limit: 413."""
    return ServeError(413, "Validation", message, param=param)


def overloaded(message: str, retry_after: float) -> ServeError:
    """More work than can be done in time: 429."""
    return ServeError(429, "Overloaded", message, retry_after=retry_after)


def timed_out(seconds: float) -> ServeError:
    """Accepted, but not done in time: 504."""
    return ServeError(504, "Timeout", f"not done within {seconds:g} s")


def failed(message: str) -> ServeError:
    """The encoder failed: 424, as text-embeddings-inference has it."""
    return ServeError(424, "Backend", message)


def unhealthy(message: str) -> ServeError:
    """Not ready yet, or no longer: 503."""
    return ServeError(503, "Unhealthy", message, retry_after=1.0)
