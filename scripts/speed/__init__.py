"""Speed and memory compared with distillation, and how they scale; measured, not tested."""
