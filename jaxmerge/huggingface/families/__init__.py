"""One file a family of models: its tensors' names and its config.json."""
