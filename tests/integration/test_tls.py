"""BentoML's own TLS options, with a real certificate."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import httpx
import trustme

from servers import Server


class TlsServer(Server):
    """A server behind TLS. authority: trusts it."""

    def __init__(self, home: Path, folder: Path) -> None:
        certificates = trustme.CA()
        own = certificates.issue_cert("127.0.0.1")
        own.private_key_pem.write_to_path(str(folder / "key"))
        own.cert_chain_pems[0].write_to_path(str(folder / "certificate"))
        self.authority = ssl.create_default_context()
        certificates.configure_trust(self.authority)
        super().__init__(home, options=["--ssl-certfile", str(folder / "certificate"), "--ssl-keyfile", str(folder / "key")])
        self.url = self.url.replace("http:", "https:")

    def get(self, path: str, timeout: float = 10.0) -> httpx.Response:
        """GET a path."""
        return httpx.get(self.url + path, timeout=timeout, verify=self.authority)


def test_bentoml_s_options_serve_tls(builtin_tag: str, tmp_path: Path) -> None:
    """The Scorer is still reached, and nobody is answered in plain text; that there are no keys is said once."""
    assert builtin_tag
    question: dict[str, Any] = {"query": "capital of France", "documents": ["Rome", "Paris is the capital of France"]}
    with TlsServer(Path(os.environ["BENTOML_HOME"]), tmp_path) as server:
        answer = httpx.post(server.url + "/rerank", json=question, verify=server.authority, timeout=30)
        assert answer.json()["results"][0]["index"] == 1
        try:
            plain = httpx.get(server.url.replace("https:", "http:") + "/livez").status_code
        except httpx.TransportError:
            plain = None
        assert plain != 200
        assert server.log.count("no API keys are set") == 1
