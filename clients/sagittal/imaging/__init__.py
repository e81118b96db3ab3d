"""Images, masks and baselines in numpy and Pillow, computed as the workers compute them.

The service, the client and the workers use this package; it imports none of them. Images are uint8 RGB of shape
(height, width, 3). Pictures are float32 RGB of shape (size, size, 3), 0 to 1, at the size of the model's input.
"""
