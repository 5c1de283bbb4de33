"""Speed and memory beside distillation, and how they grow; figures are measured, never tested."""
