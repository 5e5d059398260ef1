"""How uvicorn, which BentoML starts, reads HTTP: by h11 alone."""

from __future__ import annotations

from uvicorn import config


def read_by_h11() -> None:
    """Keep uvicorn from httptools, which it takes where it is installed; run before it starts.

    httptools bounds neither a request's line nor its headers, and takes a POST with `Upgrade: h2c`, as Java's HttpClient sends it, for one without
    a body and what comes behind for another request.
    """
    config.HTTP_PROTOCOLS["auto"] = config.HTTP_PROTOCOLS["h11"]
