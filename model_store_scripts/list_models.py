"""List the rerankers in the Bento model store: `python -m model_store_scripts.list_models`."""

from __future__ import annotations

from bento_service.errors import ModelError
from bento_service.model_info import MODULE, ModelInfo
from model_store_scripts.entries import all_tags, find_entry


def main() -> None:
    """Print one line per model: tag, kind, precision, window, size, source and revision; damaged entries too."""
    lines = [line for tag in all_tags() if (line := describe(tag))]
    print("\n".join(lines) or "no reranker is in the store: save one with `make model MODEL=builtin`")


def describe(tag: str) -> str | None:
    """Describe one entry; None if it is another program's model."""
    try:
        stored = find_entry(tag)
    except ModelError:
        return f"{tag}  half-written: delete it with `bentoml models delete {tag}`"
    if stored.info.module != MODULE:
        return None
    try:
        info = ModelInfo.from_metadata(stored.info.metadata, tag)
    except ModelError as error:
        return f"{tag}  unreadable: {error}"
    size = f"{stored.file_size / 1e6:.0f} MB"
    return f"{tag}  {info.kind}  {info.quantization}  {info.max_length} tokens  {size}  {info.source}@{info.revision}"


if __name__ == "__main__":
    main()
