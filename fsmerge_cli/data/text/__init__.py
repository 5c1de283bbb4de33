"""Texts: from files and sentences to the tokens that a network reads."""
