"""Spans of a request's stages, through the tracing that BentoML is configured with: inside its span of the request."""

from __future__ import annotations

import time

from bentoml._internal.configuration.containers import BentoMLContainer
from opentelemetry import trace
from opentelemetry.util.http import ExcludeList

from bento_service import __version__
from bento_service.metrics import OnStage


def spare_untraced_requests() -> None:
    """Let BentoML make no spans where nobody will see them: it makes five or more of each request, which takes a fifth of a known one's time.

    To be called before BentoML makes its app. Then it has no trace id to answer with either, so nothing changes where one was asked for.
    """
    if not (BentoMLContainer.tracing.exporter_type.get() or BentoMLContainer.http.response.trace_id.get()):
        BentoMLContainer.tracing_excluded_urls.set(ExcludeList([".*"]))


def stage_spans() -> OnStage | None:
    """Make what turns stages into spans; None where BentoML has nowhere to send them to."""
    if not BentoMLContainer.tracing.exporter_type.get():
        return None
    tracer = BentoMLContainer.tracer_provider.get().get_tracer("reranker", __version__)

    def told(stage: str, begun: float, ended: float) -> None:
        if not trace.get_current_span().get_span_context().trace_flags.sampled:
            return
        # Stages are timed on the monotonic clock, which all processes of a machine share; spans bear the time of day.
        monotonic_to_unix = time.time_ns() - time.monotonic_ns()
        span = tracer.start_span(stage, start_time=round(1e9 * begun) + monotonic_to_unix)
        span.end(round(1e9 * ended) + monotonic_to_unix)

    return told
