"""Scripts around the Bento model store, one verb per file: save_model, list_models, verify_model."""
