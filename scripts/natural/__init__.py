"""Merging networks trained on public photographs: sources, runs and tables."""
