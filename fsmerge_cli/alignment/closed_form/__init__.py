"""FS-Merge in closed form; `solve` is the entry."""
