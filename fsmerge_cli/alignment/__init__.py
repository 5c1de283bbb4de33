"""Statistics of activations, permutations and closed forms."""
