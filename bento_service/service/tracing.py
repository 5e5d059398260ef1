"""Spans of a request's stages, through the tracing that BentoML is configured with: inside its span of the request."""

from __future__ import annotations

import time
from typing import Any

from _bentoml_sdk import Service
from bentoml._internal.configuration.containers import BentoMLContainer
from opentelemetry import trace
from opentelemetry.util.http import ExcludeList

from bento_service import __version__
from bento_service.metrics import OnStage


class SparingService(Service[Any]):
    """Lets BentoML make no spans where nobody will see them: it makes five or more of each request, which takes a seventh of a known one's time."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Make BentoML's app; where a trace's id is to be in the answers, they have one as before."""
        self.inject_config()  # reads the file that BENTOML_CONFIG names, which super() would do too late
        if not (BentoMLContainer.tracing.exporter_type.get() or BentoMLContainer.http.response.trace_id.get()):
            BentoMLContainer.tracing_excluded_urls.set(ExcludeList([".*"]))
        return super().to_asgi(is_main=is_main)


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
