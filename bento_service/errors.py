"""Everything that can go wrong for a caller or an operator.

    RerankerError
    ├── SettingsError                 a setting is wrong: the start stops
    ├── ModelError                    a stored model is wrong: the start stops
    ├── DeviceLost                    the GPU failed for good: the model worker ends and is started again
    ├── RedisFailed                   a call to Redis failed: counted, and the request goes on without it
    └── RequestError                  answered to one caller; has status, code and type
        ├── InvalidRequest      400   the body is not a rerank request
        │   ├── QueryTooLong    400   the query fills the model's window
        │   └── DocumentTooLong 400   truncation is off and a document does not fit
        ├── Unauthorized        401
        ├── UnknownModel        404
        ├── BodyTimeout         408
        ├── BodyTooLarge        413
        ├── UnsupportedMedia    415
        ├── QueueFull           429   Retry-After
        │   └── QueueTimeout    429   Retry-After
        ├── BodiesFull          429   Retry-After
        ├── KeyBusy             429   Retry-After
        ├── ScorerFailed        500   a pair could not be scored
        ├── ScorerDown          503   Retry-After
        ├── ShuttingDown        503   Retry-After
        └── DeadlinePassed      504

Messages never hold document text, keys, paths or stack traces.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType


class RerankerError(Exception):
    """The root of the tree."""


class SettingsError(RerankerError):
    """A setting is wrong; the message names the variable and says what to do."""


class ModelError(RerankerError):
    """A stored or given model cannot be served; the message says what to do."""


class DeviceLost(RerankerError):
    """The device failed in a way that poisons every later pass of the process."""


class RedisFailed(RerankerError):
    """A call to Redis failed; the message is the kind: timeout, connection, authentication and so on."""


class RequestError(RerankerError):
    """A failure that is answered to one caller.

    status: HTTP status · code: stable name for programs · kind: OpenAI-style error type ·
    param: the request field at fault, if one is · retry_after_seconds: for 429 and 503 · headers: of every such answer.
    """

    status = 500
    code = "internal_error"
    kind = "server_error"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(RequestError):
    """The body is not a valid request."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"


class QueryTooLong(InvalidRequest):
    """The query leaves no room for a document; a query is never cut."""

    code = "query_too_long"


class DocumentTooLong(InvalidRequest):
    """A document does not fit and the caller forbade truncation."""

    code = "document_too_long"


class Unauthorized(RequestError):
    """No API key, or one that is not known."""

    status = 401
    code = "unauthorized"
    kind = "authentication_error"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class UnknownModel(RequestError):
    """Strict mode and another model's name."""

    status = 404
    code = "model_not_found"
    kind = "invalid_request_error"


class BodyTimeout(RequestError):
    """The body was not there in time; the connection is closed, since the rest may still come."""

    status = 408
    code = "body_timeout"
    kind = "timeout_error"
    headers = MappingProxyType({"Connection": "close"})


class BodyTooLarge(RequestError):
    """The body is over the limit; it was read no further than that."""

    status = 413
    code = "body_too_large"
    kind = "invalid_request_error"


class UnsupportedMedia(RequestError):
    """Only application/json is read."""

    status = 415
    code = "unsupported_media_type"
    kind = "invalid_request_error"


class QueueFull(RequestError):
    """Too many pairs or requests wait already."""

    status = 429
    code = "queue_full"
    kind = "overloaded_error"


class QueueTimeout(QueueFull):
    """The request waited for RERANKER_QUEUE_TIMEOUT, or would have."""

    code = "queue_timeout"


class BodiesFull(RequestError):
    """There is no memory for a body of this size beside the others; the connection is closed, since the rest may still come."""

    status = 429
    code = "bodies_full"
    kind = "overloaded_error"
    headers = MappingProxyType({"Connection": "close"})


class KeyBusy(RequestError):
    """One API key has too many pairs in flight."""

    status = 429
    code = "key_busy"
    kind = "overloaded_error"


class ScorerFailed(RequestError):
    """The model gave no finite score, or ran out of memory for a single pair."""

    status = 500
    code = "scoring_failed"


class ScorerDown(RequestError):
    """No Scorer process answers."""

    status = 503
    code = "scorer_down"
    kind = "overloaded_error"


class ShuttingDown(RequestError):
    """The server ends; whoever comes now is asked to go to another one."""

    status = 503
    code = "shutting_down"
    kind = "overloaded_error"


class DeadlinePassed(RequestError):
    """RERANKER_REQUEST_TIMEOUT ran out."""

    status = 504
    code = "deadline_passed"
    kind = "timeout_error"


def place_of(error: BaseException) -> str:
    """Tell where an error came from, innermost first: for a log that must not hold its words, which may be a caller's text."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
