"""What only CPUs need: rewriting of graphs, and kernels for convolutions and linear layers whose weights stay."""
