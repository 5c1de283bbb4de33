"""ModernBERT (arXiv 2412.13663): a text encoder with rotary positions, gated MLPs and local attention."""

from fsmerge_cli.architectures.modernbert.arch import ModernArch
from fsmerge_cli.architectures.modernbert.family import MODERNBERT

__all__ = ["MODERNBERT", "ModernArch"]
