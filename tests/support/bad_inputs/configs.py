"""Invalid architectures and invalid config.json files."""

from __future__ import annotations

from timm.models import list_models

from fsmerge_cli.architectures.vit.family import MERGED
from fsmerge_cli.common.errors import unknown
from tests.support.bad_inputs.case import (
    AVERAGE,
    NAN,
    VITS,
    Case,
    config,
    put,
    remove,
    two,
)

CONFIGS = [
    Case(
        "no architecture",
        AVERAGE,
        2,
        (
            "source 'a': a does not specify its architecture. Put a config.json next to the weights or pass "
            "models.sources.N.arch=..., a timm name (vit_base_patch16_224) or {family: ..., ...} (bert, "
            "convnext, eva, mlp, modernbert, resnet, vgg, vit)."
        ),
        remove("a/config.json"),
    ),
    Case(
        "an unknown architecture",
        AVERAGE,
        2,
        "source 'a': a: arch: " + unknown("timm architecture", "mlq", list_models(MERGED)),
        config("a", architecture="mlq"),
        installed=True,
    ),
    Case(
        "a convolutional network",
        AVERAGE,
        2,
        (
            "source 'a': a: arch: vovnet39a is a model of timm.models.vovnet, not a plain VisionTransformer, "
            "ResNet, VGG or ConvNeXt of timm, and cannot be merged. Use a vit_*, resnet*, vgg* or convnext* "
            "model, or write a specification for it."
        ),
        config("a", architecture="vovnet39a", model_args={}),
    ),
    Case(
        "arch and config.json disagree",
        two("name:v,checkpoint:v,arch:vit_small_patch16_224", "name:w,checkpoint:w") + " method=average",
        2,
        (
            "source 'v': v is a vit_tiny_patch16_224 according to its config.json, but models.sources.N.arch "
            "is vit_small_patch16_224. Pass models.sources.N.arch=null to use the architecture of the checkpoint."
        ),
    ),
    Case(
        "an unknown family",
        two("name:a,checkpoint:a,arch:{family:cnn}") + " method=average",
        2,
        (
            "source 'a': a: unknown arch.family 'cnn'. Did you mean 'convnext'? Available: bert, convnext, eva, "
            "mlp, modernbert, resnet, vgg, vit."
        ),
    ),
    Case(
        "widths that no tensor has",
        AVERAGE,
        2,
        (
            "source 'a': a: arch: input_size [1, 4, 4] and widths [4611686018427387904, 4611686018427387904] "
            "are too large for a tensor. Pass the sizes of the weights."
        ),
        config("a", model_args__widths=[2**62, 2**62]),
    ),
    Case(
        "widths of the wrong type",
        AVERAGE,
        2,
        "source 'a': a: arch.widths: should be a valid tuple, got 'wide'.",
        config("a", model_args__widths="wide"),
    ),
    Case(
        "an option that is unknown to timm",
        VITS,
        2,
        (
            "source 'v': v: arch: timm cannot build vit_tiny_patch16_224 with {'img_size': 8, 'patch_size': "
            "4, 'in_chans': 1, 'embed_dim': 12, 'depth': 2, 'num_heads': 3, 'colour': 'red'}: {library}. "
            "Change arch.args, or model_args in config.json."
        ),
        config("v", model_args__colour="red"),
    ),
    Case(
        "a checkpoint path inside config.json",
        VITS,
        2,
        (
            "source 'v': v: arch: checkpoint_path is not an architecture option. Weights are only read from "
            "models.sources.N.checkpoint; remove the key from the arguments."
        ),
        config("v", model_args__checkpoint_path="evil.pt"),
    ),
    Case(
        "a number of heads that does not divide the width",
        VITS,
        2,
        (
            "source 'v': v: arch: timm cannot build vit_tiny_patch16_224 with {'img_size': 8, 'patch_size': "
            "4, 'in_chans': 1, 'embed_dim': 12, 'depth': 2, 'num_heads': 5}: {library}. Change arch.args, or "
            "model_args in config.json."
        ),
        config("v", model_args__num_heads=5),
    ),
    Case(
        "config.json is not JSON",
        AVERAGE,
        2,
        (
            "source 'a': a: config.json cannot be read: it is not valid JSON ({library}). Repair it, or copy "
            "it again."
        ),
        put("a/config.json", "{'architecture': 'mlp'}"),
        installed=True,
    ),
    Case(
        "config.json is a list",
        AVERAGE,
        2,
        (
            "source 'a': a: config.json cannot be read: it should hold keys and values, and holds a list. "
            "Repair it, or copy it again."
        ),
        put("a/config.json", "[]"),
    ),
    Case(
        "config.json is not text",
        AVERAGE,
        2,
        ("source 'a': a: config.json cannot be read: it is UTF-16 text. Save it as UTF-8."),
        put("a/config.json", b"\xff\xfe"),
    ),
    Case(
        "config.json nested 100000 levels deep",
        AVERAGE,
        2,
        (
            "source 'a': a: config.json cannot be read: it has more than 100 levels inside each other. "
            "Repair it, or copy it again."
        ),
        put("a/config.json", "[" * 100_000),
    ),
    Case(
        "config.json with a number of 5000 digits",
        AVERAGE,
        2,
        (
            "source 'a': a: config.json cannot be read: it is not valid JSON ({library}). Repair it, or copy "
            "it again."
        ),
        put("a/config.json", '{"architecture": ' + "9" * 5000 + "}"),
    ),
    Case(
        "model_args is a list",
        AVERAGE,
        2,
        "source 'a': a: model_args in config.json should be an object, it is [1].",
        config("a", model_args=[1]),
    ),
    Case(
        "a mean that is not finite",
        AVERAGE,
        2,
        "source 'a': a: mean in config.json should be a list of numbers, it is [nan].",
        config("a", pretrained_cfg__mean=[NAN]),
    ),
    Case(
        "a mean of many digits",
        AVERAGE,
        2,
        (
            "source 'a': a: mean in config.json should be a list of numbers, it is "
            "[10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
            "000."
        ),
        config("a", pretrained_cfg__mean=[10**400]),
    ),
    Case(
        "a std of zero",
        AVERAGE,
        2,
        "source 'a': a: mean [0.0] and std [0.0] need 1 value each, every std above 0.",
        config("a", pretrained_cfg__std=[0.0]),
    ),
    Case(
        "a std below zero",
        AVERAGE,
        2,
        "source 'a': a: mean [0.0] and std [-1.0] need 1 value each, every std above 0.",
        config("a", pretrained_cfg__std=[-1.0]),
    ),
    Case(
        "a mean that is not a number, in a source",
        f"{two('name:a,checkpoint:a,mean:[nan]')} method=average",
        2,
        "models.sources.0.mean.0: should be a finite number, got nan.",
    ),
    Case(
        "an infinite std, in a source",
        f"{two('name:a,checkpoint:a,std:[inf]')} method=average",
        2,
        "models.sources.0.std.0: should be a finite number, got inf.",
    ),
    Case(
        "three means for one channel",
        AVERAGE,
        2,
        "source 'a': a: mean [0.1, 0.2, 0.3] and std [1.0] need 1 value each, every std above 0.",
        config("a", pretrained_cfg__mean=[0.1, 0.2, 0.3]),
    ),
    Case(
        "an unknown interpolation",
        AVERAGE,
        2,
        (
            "source 'a': a: config.json: interpolation: unknown value 'cubist'. Did you mean 'bicubic'? "
            "Available: bicubic, bilinear, box, hamming, lanczos, nearest."
        ),
        config("a", pretrained_cfg__interpolation="cubist", pretrained_cfg__crop_pct=None),
    ),
    Case(
        "a crop share near zero",
        AVERAGE,
        2,
        "source 'a': a: config.json: crop_pct should be from 0.1 to 1, it is 1e-09.",
        config("a", pretrained_cfg__crop_pct=1e-9),
    ),
]
