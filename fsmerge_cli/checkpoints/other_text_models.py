"""Text models that are recognised and cannot be merged."""

from __future__ import annotations

from fsmerge_cli.common.errors import SourceError

ENCODERS = (
    "Text encoders that can be merged are BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA and ModernBERT, as "
    "classifiers of texts or of tokens, or without a head."
)

OTHER_TYPES = {
    "albert": "ALBERT",
    "camembert": "CamemBERT",
    "convbert": "ConvBERT",
    "deberta": "DeBERTa",
    "deberta-v2": "DeBERTa",
    "mpnet": "MPNet",
    "nomic_bert": "Nomic BERT",
    "roformer": "RoFormer",
    "t5": "T5",
    "xlnet": "XLNet",
}
"""Text models that are recognised and not supported."""


def refuse_other(kind: str, where: str) -> None:
    """Raise SourceError for a text model of another kind."""
    if kind in OTHER_TYPES:
        raise SourceError(
            f"{where} is a {OTHER_TYPES[kind]} (model_type '{kind}'), which is not supported. {ENCODERS}"
        )
