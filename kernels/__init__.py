"""One file a kernel, or a form of it: plain-torch reference, Triton, compiled C, registration."""
