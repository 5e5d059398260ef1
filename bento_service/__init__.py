"""The reranker service; a request's way through these rooms is told in pipeline.py."""
