"""How good a model is, and proofs that it is the right one."""
