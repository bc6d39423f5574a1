"""A structure of our own over the caller's network, and what its layers need inside an inner loop."""
