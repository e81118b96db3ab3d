"""Models: what an operator registers, how it is loaded, and how an image becomes its input."""
