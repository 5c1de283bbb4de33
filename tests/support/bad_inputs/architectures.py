"""Sources whose architectures differ."""

from __future__ import annotations

from dataclasses import replace

from tests.support.bad_inputs.case import (
    AVERAGE,
    VITS,
    Case,
    save,
    two,
)
from tests.support.sources import mlp_source
from tests.support.vits import vit_source

MISMATCHES = [
    Case(
        "a different depth",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - depth: 'a' has 2, 'b' has 3\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8, 8], 1)),
    ),
    Case(
        "a different activation",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - activation: 'a' has relu, 'b' has gelu\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8], 1, activation="gelu")),
    ),
    Case(
        "a different norm",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - norm: 'a' has none, 'b' has batch\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8], 1, norm="batch")),
    ),
    Case(
        "a different image size",
        AVERAGE,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - input_size: 'a' has [1, 4, 4], 'b' has [1, 5, 5]\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [8, 8], 1, input_size=(1, 5, 5))),
    ),
    Case(
        "a different family",
        two(second="name:w,checkpoint:w") + " method=average",
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - 'a' is a mlp, 'w' a vit\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
    ),
    Case(
        "a different width where the method needs one width",
        two() + " method=slerp data=folder data.root=images",
        2,
        (
            "method=slerp needs sources with the width and number of heads of the merged model. Take "
            "method=fs_merge or method=kd, which do not."
        ),
        lambda f, p: save(f / "b", mlp_source("b", [6, 6], 1)),
    ),
    Case(
        "a different patch size",
        VITS,
        2,
        (
            "these sources cannot be merged, for 2 reasons:\n"
            "  - patch size: 'v' has [4, 4], 'w' has [2, 2]\n"
            "  - positions: 'v' has 5, 'w' has 17\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, patch_size=2), name="w")),
    ),
    Case(
        "a different image size of a transformer",
        VITS,
        2,
        (
            "these sources cannot be merged, for 2 reasons:\n"
            "  - input_size: 'v' has [1, 8, 8], 'w' has [1, 16, 16]; models.sources.N.input_size=[8, 8] resamples "
            "the position embeddings of the other, which is not exact\n"
            "  - positions: 'v' has 5, 'w' has 17\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, img_size=16), name="w")),
    ),
    Case(
        "a different depth of a transformer",
        VITS,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - depth: 'v' has 2, 'w' has 3; models.sources.N.depth=3 adds blocks to the other, which change "
            "nothing\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, depth=3), name="w")),
    ),
    Case(
        "a different activation of a transformer",
        VITS,
        2,
        (
            "these sources cannot be merged, for 1 reason:\n"
            "  - activation: 'v' has GELU(approximate='none'), 'w' has ReLU()\n"
            "Change the entries of models.sources (checkpoint, arch, head, labels, name), or take other "
            "sources."
        ),
        lambda f, p: save(f / "w", replace(vit_source("class token", 1, in_chans=1, act_layer="relu"), name="w")),
    ),
]
