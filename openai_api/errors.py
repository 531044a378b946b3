"""Errors as OpenAI sends them, so that its SDKs raise the exceptions that people know.

Every error body is `{"error": {"message", "type", "param", "code"}}`
(https://platform.openai.com/docs/guides/error-codes/api-errors). After a stream has begun the same object goes out as
one last event; the `openai` package turns it into an `APIError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarm.errors import BadRequest, Expelled, Overloaded, SessionFailed, SwarmError, Unavailable, UnknownModel

INVALID = "invalid_request_error"
MOST_NAMED = 8  # models in one message
SERVER = "server_error"

# What pydantic's error types ask for, in the words of JSON.
_WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


class ApiError(Exception):
    """An answer other than success.

    Attributes:
        status: of HTTP.
        kind, param, code: the fields `type`, `param` and `code` of the body.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, why: str = "") -> ApiError:
    message = f"Unsupported parameter: '{param}' is not supported by this server{': ' + why if why else ''}."
    return invalid(message, param, "unsupported_parameter")


def model_not_found(model: str, served: Sequence[str]) -> ApiError:
    """Names those that there are, as far as they fit on a line."""
    known = ", ".join(served) if len(served) <= MOST_NAMED else f"{', '.join(served[:MOST_NAMED])} and others"
    message = f"The model '{model}' does not exist in this swarm, which serves {known or 'none yet'}."
    return ApiError(404, message, param="model", code="model_not_found")


def incomplete(model: str, missing: Sequence[tuple[int, int]]) -> ApiError:
    """No server holds some of the model's blocks; said with the spans as `swarm-server --blocks` takes them."""
    spans = ", ".join(f"{start}:{end}" for start, end in missing)
    message = (
        f"The model '{model}' is incomplete: no server of this swarm holds the blocks {spans}. Start one for them."
    )
    return ApiError(503, message, kind=SERVER, code="model_incomplete", headers={"Retry-After": "5"})


def context_length_exceeded(context: int, prompt: int, wanted: int, param: str) -> ApiError:
    """OpenAI's words for a request that is longer than the model's context."""
    asked = f"you requested {prompt + wanted} tokens ({prompt} in the {param}, {wanted} in the completion)"
    message = f"This model's maximum context length is {context} tokens. However, {asked}. Please reduce their length."
    return ApiError(400, message, param=param, code="context_length_exceeded")


def too_many_requests(wait: int, limit: str) -> ApiError:
    """The gateway has as much to do as it may. `wait`: seconds until it is worth trying again; `limit`: in words."""
    message = f"The gateway has too many requests to answer: {limit}. Try again in {wait} s."
    return ApiError(429, message, kind="rate_limit_error", code="overloaded", headers={"Retry-After": str(wait)})


def shutting_down() -> ApiError:
    return ApiError(503, "The gateway is shutting down. Try again later.", kind=SERVER, code="shutting_down")


def internal(request_id: str) -> ApiError:
    message = f"The gateway failed to answer this request. Its log says more under the request id {request_id}."
    return ApiError(500, message, kind=SERVER, code="internal_error")


def unknown_route(method: str, path: str) -> ApiError:
    return ApiError(404, f"Unknown request URL: {method} {path}.", code="unknown_url")


def wrong_method(method: str, path: str, headers: Mapping[str, str] | None) -> ApiError:
    allowed = (headers or {}).get("allow") or (headers or {}).get("Allow") or "another method"
    return ApiError(
        405, f"Not allowed to {method} on {path}. Use {allowed}.", code="method_not_allowed", headers=headers
    )


def from_swarm(error: SwarmError, request_id: str) -> ApiError:
    """The swarm's errors are written for people, so their text goes out; another cause's text does not."""
    message = str(error)
    match error:
        case BadRequest():
            return invalid(message)
        case UnknownModel():
            return ApiError(404, message, param="model", code="model_not_found")
        case Overloaded():
            wait = 1.0 if error.retry_after is None else error.retry_after
            headers = {"Retry-After": str(max(1, math.ceil(wait)))}
            return ApiError(429, message, kind="rate_limit_error", code="overloaded", headers=headers)
        case Unavailable():
            return ApiError(503, message, kind=SERVER, code="model_incomplete", headers={"Retry-After": "5"})
        case Expelled():
            return ApiError(503, message, kind=SERVER, code="expelled")
        case SessionFailed():
            return ApiError(502, message, kind=SERVER, code="session_failed")
        case _:
            return internal(request_id)


def from_exception(error: Exception, request_id: str) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return from_swarm(error, request_id) if isinstance(error, SwarmError) else internal(request_id)


def from_validation(errors: Sequence[Mapping[str, Any]], names: frozenset[str]) -> ApiError:
    """One error out of pydantic's list: the first wrong field, at the deepest place where it is wrong.

    Args:
        errors: as `ValidationError.errors()` gives them, with locations that begin with "body".
        names: the fields that exist in a body; other words in a location are pydantic's own (members of a union).
    """
    field = errors[0]["loc"][:2]
    same = [error for error in errors if tuple(error["loc"][:2]) == tuple(field)]
    depth = max(len(error["loc"]) for error in same)
    deepest = [error for error in same if len(error["loc"]) == depth]
    error = deepest[0]
    kind = error["type"]
    param = _param(error["loc"][1:], names)
    if kind == "json_invalid":
        return invalid(f"The request's body is not valid JSON: {error['ctx']['error']}.", code="invalid_json")
    if kind == "string_unicode":
        return invalid("The body holds half of a surrogate pair, which is no text.", param or None, "invalid_json")
    if kind == "combination":
        name = ".".join(filter(None, [param, error["ctx"]["param"]]))
        return invalid(f"Invalid value for '{name}': {error['ctx']['why']}.", name, "invalid_combination")
    if kind == "unsupported_parameter":
        return unsupported(".".join(part for part in (param, error["ctx"]["name"]) if part), error["ctx"]["why"])
    if kind == "extra_forbidden":
        outer = _param(error["loc"][1:-1], names)
        own = str(error["loc"][-1])[:100]
        name = ".".join(part for part in (outer, own if own.isprintable() else ascii(own)) if part)
        return invalid(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    if not param:
        message = "The body must be a JSON object, sent with 'Content-Type: application/json'."
        return invalid(message, code="invalid_json")
    if kind == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if all(each["type"] in _WANTED for each in deepest):
        wanted = " or ".join(dict.fromkeys(_WANTED[each["type"]] for each in deepest))
        message = f"Invalid type for '{param}': expected {wanted}, but got {_json_type(error['input'])} instead."
        return invalid(message, param, "invalid_type")
    if kind == "literal_error":
        got = ascii(error["input"])[:100]
        expected = error["ctx"]["expected"].replace(" or ", ", ")
        return invalid(f"Invalid value for '{param}': {got}. Supported values are: {expected}.", param)
    text = error["msg"][:1].lower() + error["msg"][1:]
    return invalid(f"Invalid value for '{param}': {text}.", param)


def _param(location: Sequence[str | int], names: frozenset[str]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in names or not text:
            text += f".{part}" if text else part
    return text


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
