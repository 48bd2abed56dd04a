"""One file a kernel: plain-torch reference, Triton, registration."""
