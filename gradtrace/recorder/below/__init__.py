"""Evidence below the step: what single positions and samples contribute, without storing any of it."""
