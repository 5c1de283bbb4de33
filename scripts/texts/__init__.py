"""Text encoders on real sentences: the sources, the merges and docs/results/text.md."""
