"""Folders, shards and adapters that are refused, and their messages after the path."""

from __future__ import annotations

import torch

from tests.support.layouts.files import Prepare, put, safe_file, shards, torch_file, within, zipped
from tests.support.layouts.formats import POINTER, RESAVE, UNPACK

PEFT = (
    "Pass its folder and the model that it was trained on, models.sources.N.base=... (needs pip install "
    "peft), or merge it once: peft's PeftModel.from_pretrained(model, FOLDER).merge_and_unload() "
    "returns the model, whose save_pretrained or state_dict() gives the weights."
)
LORA = {"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 2)}

FOLDERS: dict[str, tuple[Prepare, str]] = {
    "an empty folder": (
        lambda folder, weights: str((folder / "m").mkdir() or "m"),
        "holds no weights (model.safetensors, pytorch_model.bin, or another file of weights), and no merged/ of a "
        "run. Pass another folder, or a file.",
    ),
    "several candidates": (
        within("m", torch_file("m/epoch=1.ckpt"), torch_file("m/epoch=2.ckpt"), torch_file("m/last.ckpt")),
        "holds 3 files of weights: epoch=1.ckpt, epoch=2.ckpt, last.ckpt. Pass one of them: "
        "models.sources.N.checkpoint={path}/epoch=1.ckpt",
    ),
    "a folder of Keras": (
        within("m", put("m/tf_model.h5", b"\x89HDF\r\n\x1a\n")),
        f"holds no weights that can be read: tf_model.h5 is an HDF5 file (Keras, TensorFlow). {RESAVE}",
    ),
    "a folder of archives": (
        within("m", put("m/model.zip", zipped({"config.json": b"{}"})), put("m/README.md", b"# x")),
        f"holds no weights that can be read: model.zip is a zip archive. {UNPACK}",
    ),
    "a folder of folders": (
        within(
            "m", safe_file("m/checkpoint-10/model.safetensors"), safe_file("m/checkpoint-20/model.safetensors")
        ),
        "holds no weights, but folders below it do: {path}/checkpoint-10, {path}/checkpoint-20. Pass one of them.",
    ),
    "a distributed checkpoint": (
        within("m", put("m/__0_0.distcp", zipped({"x/data.pkl": b""})), put("m/.metadata", b"x")),
        "holds no weights that can be read: __0_0.distcp is a part of a distributed checkpoint of PyTorch. "
        "Convert its folder once: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER "
        "weights.pt",
    ),
    "a folder with a pointer": (
        within("m", put("m/model.safetensors", POINTER)),
        ": model.safetensors is a Git LFS pointer, not the weights. Run `git lfs pull` in its repository.",
    ),
    "a folder with a pointer for the heads": (
        within("m", safe_file("m/model.safetensors"), put("m/heads.safetensors", POINTER)),
        ": heads.safetensors is a Git LFS pointer, not the weights. Run `git lfs pull` in its repository.",
    ),
    "a missing shard": (
        shards(drop="model-00002-of-00002.safetensors"),
        ": model.safetensors.index.json names 2 files, of which 1 is missing: model-00002-of-00002.safetensors. "
        "Download them again.",
    ),
    "an index of a tensor that no shard has": (
        shards(absent="fc9.weight"),
        ": the index of the shards names tensors that its files do not have: fc9.weight. They come from "
        "different saves: download the folder again.",
    ),
    "a shard with a tensor that is not in the index": (
        shards(extra="fc9.weight"),
        ": the index of the shards does not name tensors that its files have: fc9.weight. They come from "
        "different saves: download the folder again.",
    ),
    "an index without its map": (
        shards(content={"metadata": {}}),
        ": model.safetensors.index.json should contain weight_map, an object from the name of each tensor to its "
        "file. Download it again.",
    ),
    "an index that is a list": (
        shards(content=[1]),
        ": model.safetensors.index.json cannot be read: it should hold keys and values, and holds a list. "
        "Download it again.",
    ),
    "an index that names a file elsewhere": (
        shards(content={"weight_map": {"fc0.weight": "../other/model.safetensors"}}),
        ": model.safetensors.index.json names a file outside its folder: '../other/model.safetensors'. Download "
        "it again.",
    ),
    "one shard": (
        shards("m/model-00001-of-00002.safetensors"),
        "is one of several shards. Pass their folder, or the file that ends in .index.json.",
    ),
    "shards without their index": (
        shards(drop="model.safetensors.index.json"),
        "holds shards (model-00001-of-00002.safetensors, model-00002-of-00002.safetensors) without their index, a "
        "file that ends in .index.json. Download it too.",
    ),
    "a folder of PEFT": (
        within("m", put("m/adapter_config.json", b"{}"), safe_file("m/adapter_model.safetensors", lambda t: LORA)),
        f"holds an adapter of PEFT (LoRA or similar), not the weights of a whole model. {PEFT}",
    ),
    "the adapter of PEFT": (
        safe_file("adapter_model.safetensors", lambda t: LORA),
        "contains an adapter of PEFT (LoRA or similar), not the weights of a whole model "
        f"(base_model.model.blocks.0.attn.qkv.lora_A.weight). {PEFT}",
    ),
    "a model of PEFT that is not merged": (
        safe_file(
            "x.safetensors",
            lambda t: {**t, "fc0.base_layer.weight": torch.ones(2), "fc0.lora_A.x.weight": torch.ones(2)},
        ),
        "contains a model with an adapter of PEFT that is not merged into it (fc0.base_layer.weight). Merge it "
        "once: peft's merge_and_unload() returns the model, whose save_pretrained or state_dict() gives the "
        "weights.",
    ),
    "flat parameters of FSDP": (
        safe_file("x.safetensors", lambda t: {"_fsdp_wrapped_module._flat_param": torch.ones(9)}),
        "contains flat parameters of FSDP, whose shapes the file does not have (_flat_param). Save the whole "
        "state dict: FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT).",
    ),
}
