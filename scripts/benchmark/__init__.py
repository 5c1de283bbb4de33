"""The benchmark: what merges keep of their sources, a line per run (`python -m scripts.benchmark`)."""
