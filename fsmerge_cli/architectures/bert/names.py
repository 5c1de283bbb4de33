"""The names that Hugging Face's transformers give to the parts of each kind of text encoder.

One entry per `model_type`. From it the module, the specification, and the names in files follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

NO_LAYER = "-"
"""Path of a layer that there is not."""


@dataclass(frozen=True)
class Names:
    """The parts of one kind of encoder, as paths of modules; those inside a block without the block.

    title: in messages. model, classifier: classes of transformers. prefix: of the encoder's tensors in a file of a
    classifier. word, position, types: the tables that are summed (types None: there are none). norm: on their sum.
    project: from their width to the width of the blocks, where these differ (None: they cannot). block: `{i}` is
    its number. pooler: the layer on the first token, called so in fsmerge; pooled: called so in a classifier.
    pooling: its activation. in_base: whether the encoder itself has it, and not only its classifiers. head: the
    classifier on the pooled features. after_padding: positions are counted from the number of the padding token.
    pooler_norm: whether the pooler consists of a layer `dense`, its activation and a `norm`.
    """

    title: str
    model: str
    classifier: str
    prefix: str
    word: str = "embeddings.word_embeddings"
    position: str = "embeddings.position_embeddings"
    types: str | None = "embeddings.token_type_embeddings"
    norm: str = "embeddings.LayerNorm"
    project: str | None = None
    block: str = "encoder.layer.{i}"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    hidden: str = "intermediate.dense"
    output: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    pooler: str = "pooler.dense"
    pooled: str = "bert.pooler.dense"
    pooling: str = "tanh"
    in_base: bool = True
    head: str = "classifier"
    after_padding: bool = False
    pooler_norm: bool = False

    @property
    def pooler_weight(self) -> str:
        """The tensor that shows whether there is a pooler."""
        return f"{self.pooler}.dense.weight" if self.pooler_norm else f"{self.pooler}.weight"

    @property
    def token_classifier(self) -> str:
        """The class of transformers that classifies tokens."""
        return self.model.removesuffix("Model") + "ForTokenClassification"

    def of(self, pooling: str) -> Names:
        """These names in a file of a token classifier, whose head reads the tokens as they are, or the same."""
        if pooling != "tokens":
            return self
        if self.pooler_norm:  # its head reads tokens behind the pooler
            return replace(self, classifier=self.token_classifier)
        return replace(self, classifier=self.token_classifier, pooled=NO_LAYER, head="classifier")

    def in_classifier(self, name: str) -> str:
        """A tensor's name in a file of a classifier."""
        if name.startswith(f"{self.pooler}."):
            return self.pooled + name.removeprefix(self.pooler)
        return self.prefix + name


_ROBERTA = Names(
    title="RoBERTa",
    model="RobertaModel",
    classifier="RobertaForSequenceClassification",
    prefix="roberta.",
    pooled="classifier.dense",
    head="classifier.out_proj",
    after_padding=True,
)

NAMES: Mapping[str, Names] = {
    "bert": Names("BERT", "BertModel", "BertForSequenceClassification", "bert."),
    "roberta": _ROBERTA,
    "xlm-roberta": replace(
        _ROBERTA, title="XLM-R", model="XLMRobertaModel", classifier="XLMRobertaForSequenceClassification"
    ),
    "distilbert": Names(
        title="DistilBERT",
        model="DistilBertModel",
        classifier="DistilBertForSequenceClassification",
        prefix="distilbert.",
        types=None,
        block="transformer.layer.{i}",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attended="attention.out_lin",
        attended_norm="sa_layer_norm",
        hidden="ffn.lin1",
        output="ffn.lin2",
        output_norm="output_layer_norm",
        pooler="pre_classifier",
        pooled="pre_classifier",
        pooling="relu",
        in_base=False,
    ),
    "electra": Names(
        title="ELECTRA",
        model="ElectraModel",
        classifier="ElectraForSequenceClassification",
        prefix="electra.",
        project="embeddings_project",
        pooler="classifier.dense",
        pooled="classifier.dense",
        pooling="gelu",
        in_base=False,
        head="classifier.out_proj",
    ),
    "modernbert": Names(
        title="ModernBERT",
        model="ModernBertModel",
        classifier="ModernBertForSequenceClassification",
        prefix="model.",
        word="embeddings.tok_embeddings",
        types=None,
        norm="embeddings.norm",
        block="layers.{i}",
        hidden="mlp.Wi",
        pooler="head",
        pooled="head",
        pooling="gelu",
        in_base=False,
        pooler_norm=True,
    ),
}
"""By `model_type` of a config.json."""
