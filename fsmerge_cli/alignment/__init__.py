"""Statistics of activations, permutations, closed forms."""
