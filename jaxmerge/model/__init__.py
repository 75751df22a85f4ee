"""One Flax NNX decoder: its config, its forward pass and its only loss."""
