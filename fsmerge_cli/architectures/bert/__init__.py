"""Text encoders with blocks that normalise after every sum: BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA."""

from fsmerge_cli.architectures.bert.arch import TextArch
from fsmerge_cli.architectures.bert.family import BERT
from fsmerge_cli.architectures.bert.names import NAMES, NO_LAYER, Names

__all__ = ["BERT", "NAMES", "NO_LAYER", "Names", "TextArch"]
