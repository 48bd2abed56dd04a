"""From a plan to a faster model: timing, module surgery, verification, saving."""
