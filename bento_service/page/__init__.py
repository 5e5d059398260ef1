"""The page at `/`, on which a person tries the service: one HTML document, its style and its script within it.

Its headers let it load nothing, run no script but that one, and talk to nobody but the server it came from.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from starlette.responses import Response

_STYLE, _SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
_DOCUMENT = (
    Path(__file__)
    .with_name("page.html")
    .read_text(encoding="utf-8")
    .replace("<style></style>", f"<style>{_STYLE}</style>")
    .replace('<script type="module"></script>', f'<script type="module">{_SCRIPT}</script>')
)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY = {
    "default-src": "'none'",
    "script-src": _source(_SCRIPT),
    "style-src": _source(_STYLE),
    "connect-src": "'self'",
    "img-src": "data:",  # the icon, which browsers would ask the server for otherwise
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # Text becomes markup nowhere, and from here on it cannot.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{directive} {sources}" for directive, sources in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # another version of the service has another page
}


def page_response() -> Response:
    """Send the page."""
    return Response(_DOCUMENT, media_type="text/html", headers=_HEADERS)
