"""Merging convolutional networks: sources, runs and tables."""
