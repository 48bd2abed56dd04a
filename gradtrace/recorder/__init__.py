"""Live accumulators over the gradients of a model that trains."""
