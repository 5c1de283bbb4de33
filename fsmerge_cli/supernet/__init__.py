"""Merge and unmerge maps, the fold, the folded network and its unfolded reference."""
