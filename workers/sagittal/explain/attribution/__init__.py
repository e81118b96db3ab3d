"""Attribution methods: heatmaps from layers, gradients or random masks."""
