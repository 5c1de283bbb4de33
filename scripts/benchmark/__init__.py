"""The quality benchmark: relative accuracy of merged models, one line per run (`python -m scripts.benchmark`)."""
