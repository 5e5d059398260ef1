"""BentoML's room: the two services, wired; no logic, and no other room imports bentoml."""

from bento_service.service.reranker import Reranker

__all__ = ["Reranker"]
