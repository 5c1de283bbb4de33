"""Trained models as values, and the plan compiled from them."""
