"""The reranker service; a request's way through these rooms is told in pipeline.py."""

__version__ = "0.1.0"
