"""The model's side: the only room that imports torch."""
