"""List the rerankers in the Bento model store: `python -m model_store_scripts.list_models`."""

from __future__ import annotations

import bentoml

from bento_service.errors import ModelError
from bento_service.model_info import MODULE, ModelInfo


def main() -> None:
    """Print one line per model: tag, kind, precision, window, size, source and revision."""
    models = [model for model in bentoml.models.list() if model.info.module == MODULE]
    if not models:
        print("no reranker is in the store: save one with `make model MODEL=builtin`")
    for model in models:
        try:
            info = ModelInfo.from_metadata(model.info.metadata, str(model.tag))
        except ModelError as error:
            print(f"{model.tag}  unreadable: {error}")
            continue
        size = f"{model.file_size / 1e6:.0f} MB"
        print(f"{model.tag}  {info.kind}  {info.quantization}  {info.max_length} tokens  {size}  {info.source}@{info.revision}")


if __name__ == "__main__":
    main()
