"""Heatmaps from layers, gradients or random masks: the methods that users compare with."""
