"""LoRA adapters of text encoders: merged by PEFT into their base, with their head and the tokenizer of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli import load_source
from fsmerge_cli.checkpoints.kind import reads_text
from fsmerge_cli.common.errors import SourceError
from fsmerge_cli.common.inputs import IDS, MASK
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.training.teachers import network
from tests.support.encoders import (
    TOPIC,
    save_encoder,
    sentence_source,
    texts,
    transformers_model,
    with_tokenizer,
)

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # of two libraries

KINDS: dict[str, tuple[str, str, list[str]]] = {
    "texts": ("BERT", "SEQ_CLS", ["query", "value"]),
    "tokens": ("BERT, tokens", "TOKEN_CLS", ["query", "dense"]),
    "ModernBERT": ("ModernBERT", "SEQ_CLS", ["Wqkv", "Wi"]),
}


def adapted(folder: Path, kind: str) -> Any:
    """base/: an encoder with its classifier; adapter/: random LoRA layers and a head of its own; the model."""
    variant, task, targets = KINDS[kind]
    source = sentence_source(variant, 1, TOPIC)
    save_encoder(folder / "base", source)
    torch.manual_seed(0)
    saved = ["classifier"] if variant != "ModernBERT" else ["classifier", "head"]
    options = {"task_type": task, "target_modules": targets, "modules_to_save": saved}
    found = peft.get_peft_model(transformers_model(source), peft.LoraConfig(r=2, lora_alpha=6, **options))
    with torch.no_grad():
        for tensor in found.parameters():
            if tensor.requires_grad:
                tensor.normal_(std=0.3)
    found.save_pretrained(folder / "adapter")
    return found.merge_and_unload().eval()


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_the_adapted_model(kind: str, tmp_path: Path) -> None:
    expected = adapted(tmp_path, kind)
    entry = {"checkpoint": str(tmp_path / "adapter"), "base": str(tmp_path / "base")}
    found = load_source({"name": "topic", **entry, "labels": TOPIC})
    inputs = texts(found.arch, 4)
    with torch.no_grad():
        logits = expected(input_ids=inputs.tensors[IDS], attention_mask=inputs.mask).logits
    logits = logits[inputs.tensors[MASK] != 0] if kind == "tokens" else logits
    torch.testing.assert_close(found.head(network(found)(inputs)), logits, rtol=1e-4, atol=1e-5)
    assert any("the LoRA adapter of" in note for note in found.notes)
    assert found.preprocessing.state
    assert reads_text(SourceSpec("topic", **entry))


@pytest.mark.full
def test_the_tokenizers_of_adapter_and_base_are_the_same(tmp_path: Path) -> None:
    adapted(tmp_path, "texts")
    with_tokenizer(tmp_path / "adapter")
    entry = {"checkpoint": str(tmp_path / "adapter"), "base": str(tmp_path / "base"), "labels": TOPIC}
    assert load_source({"name": "topic", **entry}).labels == TOPIC
    own = json.loads((tmp_path / "adapter/tokenizer.json").read_text())
    own["normalizer"]["lowercase"] = False
    (tmp_path / "adapter/tokenizer.json").write_text(json.dumps(own))
    (tmp_path / "adapter/tokenizer_config.json").unlink()
    with pytest.raises(SourceError) as error:
        load_source({"name": "topic", **entry})
    assert str(error.value) == (
        f"source 'topic': {tmp_path}/adapter: of its tokenizer and that of its base the tokenizers differ "
        "(normalizer.lowercase: True, False); a text has to become the same tokens for every source. Pass the "
        "folder of the one that it was trained with: models.sources.N.tokenizer=FOLDER"
    )
    chosen = load_source({"name": "topic", **entry, "tokenizer": str(tmp_path / "base")})
    assert chosen.labels == TOPIC
