"""Layouts that are read: how they are made, and the notes on what was chosen."""

from __future__ import annotations

import torch

from tests.support.layouts.files import ARGS, Prepare, put, renamed, safe_file, shards, torch_file, within

READ: dict[str, tuple[Prepare, tuple[str, ...]]] = {
    "safetensors with an upper-case suffix": (safe_file("MODEL.SAFETENSORS"), ()),
    "safetensors without a suffix": (safe_file("weights"), ()),
    "safetensors under the suffix of torch": (safe_file("model.pt"), ()),
    "safetensors in the cache of the hub": (safe_file("blobs/3f1a"), ()),
    "torch's file with an upper-case suffix": (torch_file("MODEL.PTH"), ()),
    "torch's file without a suffix": (torch_file("weights"), ()),
    "torch's file under the suffix of safetensors": (torch_file("model.safetensors"), ()),
    "torch's old format without a suffix": (torch_file("w", _use_new_zipfile_serialization=False), ()),
    "a .pth.tar of plain values": (torch_file("best.pth.tar", lambda t: {"epoch": 3, "state_dict": t}), ()),
    "a suffix of its own": (torch_file("model.weights"), ()),
    "model.pth in a folder": (within("m", torch_file("m/model.pth")), ()),
    "the only file in a folder": (within("m", torch_file("m/epoch=3-step=10.ckpt")), ()),
    "an upper-case file in a folder": (within("m", torch_file("m/BEST.PTH")), ()),
    "a .pth.tar in a folder": (within("m", torch_file("m/model_best.pth.tar")), ()),
    "open_clip's name in a folder": (within("m", safe_file("m/open_clip_model.safetensors")), ()),
    "pytorch_model.bin in a folder": (within("m", torch_file("m/pytorch_model.bin")), ()),
    "weights beside the optimizer's": (
        within(
            "m",
            torch_file("m/last.pt"),
            torch_file("m/optimizer.pt"),
            torch_file("m/training_args.bin", lambda t: ARGS),
            torch_file("m/rng_state.pth"),
            put("m/._last.pt", b"\0\5\26\7"),
        ),
        (),
    ),
    "two known names in a folder": (
        within("m", safe_file("m/model.safetensors"), torch_file("m/pytorch_model.bin")),
        ("'a': model.safetensors was read, pytorch_model.bin in the same folder was not",),
    ),
    "a known name beside others": (
        within("m", safe_file("m/model.safetensors"), torch_file("m/best.pt"), torch_file("m/last.pt")),
        ("'a': model.safetensors was read, best.pt, last.pt in the same folder were not",),
    ),
    "shards": (shards(), ()),
    "shards, by their index": (shards("m/model.safetensors.index.json"), ()),
    "shards of torch": (shards(legacy=True), ()),
    "torch.compile": (safe_file("x.safetensors", renamed(lambda n: f"_orig_mod.{n}")), ()),
    "torch.compile of every layer": (
        safe_file("x.safetensors", renamed(lambda n: n.replace(".", "._orig_mod.", 1))),
        (),
    ),
    "DataParallel inside": (safe_file("x.safetensors", renamed(lambda n: n.replace(".", ".module.", 1))), ()),
    "FSDP inside": (
        safe_file(
            "x.safetensors", renamed(lambda n: f"_fsdp_wrapped_module.{n}".replace(".", "._fpw_module.", 1))
        ),
        (),
    ),
    "wrappers, repeated and combined": (
        safe_file(
            "x.safetensors",
            renamed(
                lambda n: "module._orig_mod.module._fsdp_wrapped_module." + n.replace(".", "._orig_mod.module.")
            ),
        ),
        (),
    ),
    "wrappers around and inside a prefix": (
        safe_file("x.safetensors", renamed(lambda n: f"state_dict.module.model._orig_mod.{n}")),
        (),
    ),
    "activation checkpointing": (
        safe_file("x.safetensors", renamed(lambda n: n.replace(".", "._checkpoint_wrapped_module.", 1))),
        (),
    ),
    "Lightning": (
        torch_file(
            "x.ckpt",
            lambda t: {
                "epoch": 3,
                "pytorch-lightning_version": "2.4.0",
                "state_dict": {f"model.{n}": v for n, v in t.items()},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
                "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "x"}},
                "hyper_parameters": {"lr": 0.1},
            },
        ),
        (),
    ),
    "Lightning with _forward_module": (
        torch_file("x.ckpt", lambda t: {"state_dict": {f"_forward_module.model.{n}": v for n, v in t.items()}}),
        (),
    ),
    "DeepSpeed's states of one process": (
        torch_file("mp_rank_00_model_states.pt", lambda t: {"module": t, "optimizer": None, "dp_world_size": 1}),
        (),
    ),
    "a folder of DeepSpeed": (
        within(
            "m",
            torch_file("m/mp_rank_00_model_states.pt", lambda t: {"module": t}),
            torch_file("m/zero_pp_rank_0_mp_rank_00_optim_states.pt", lambda t: ARGS),
        ),
        (),
    ),
    "an averaged model of torch": (
        torch_file("x.pt", lambda t: {"n_averaged": torch.tensor(3), **{f"module.{n}": v for n, v in t.items()}}),
        ("'a': not used, without effect on the features: n_averaged",),
    ),
    "timm's training checkpoint": (
        torch_file("x.pth.tar", lambda t: {"arch": "mlp", "state_dict": t, "state_dict_ema": t, "metric": 3.0}),
        (
            "'a': the weights under 'state_dict.' were used, the EMA weights under 'state_dict_ema.' were not "
            "(models.sources.N.ema=true uses them)",
        ),
    ),
}
