"""Images, masks and baselines as the workers see them, in numpy and Pillow.

The service, the client and the workers share it; it knows none of them. Images are uint8 RGB of shape (height, width,
3); pictures are float32 RGB of shape (size, size, 3), 0 to 1, at the size of the model's input.
"""
