"""One backbone for the features of two: the sources, the merges and docs/results/features.md."""
