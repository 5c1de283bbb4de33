"""Invalid keys and values."""

from __future__ import annotations

import torch

from fsmerge_cli.common import presets
from tests.support.bad_inputs.case import (
    AVERAGE,
    DATA,
    KD,
    NOT_EVALUATED,
    VITS,
    Case,
    two,
)

OPTIONS = [
    Case(
        "no models",
        "merge method=average",
        2,
        (
            "no models given. Choose them with +models=NAME. Available:\n"
            "models\n"
            + "\n".join(f"  +models={n:<18}  {presets.summary('models', n)}" for n in presets.shipped("models"))
        ),
    ),
    Case(
        "an unknown command",
        "marge",
        2,
        "unknown command 'marge'. Did you mean 'merge'? "
        "Available: check, compare, completion, curve, evaluate, export, finetune, init, list, merge, predict, "
        "push, schema. See fsmerge --help.",
        installed=True,
    ),
    Case(
        "unknown models",
        "merge +models=digits",
        2,
        (
            "unknown models 'digits'. Did you mean 'digits_mlp_trio'? Available: "
            f"{', '.join(presets.shipped('models'))}."
        ),
    ),
    Case(
        "an unknown method",
        two() + " method=averag",
        2,
        (f"unknown method 'averag'. Did you mean 'average'? Available: {', '.join(presets.shipped('method'))}."),
        installed=True,
    ),
    Case(
        "an unknown key",
        AVERAGE + " method.step=3",
        2,
        "unknown key in method 'step'. Available: heads, name, repair, reset_batchnorm, task_weights, width.",
    ),
    Case(
        "an unknown key of a source",
        two("name:a,chekpoint:a") + " method=average",
        2,
        (
            "unknown key in models.sources.0 'chekpoint'. Did you mean 'checkpoint'? Available: arch, base, "
            "checkpoint, depth, ema, head, input_size, labels, loaded, mean, module, name, normalize, prefix, "
            "reads, recipe, std, tokenizer."
        ),
    ),
    Case(
        "a key without a value",
        AVERAGE + " seed",
        2,
        "cannot read 'seed'. Write KEY=VALUE; quote a value with spaces or symbols: 'KEY=\"a, b\"'.",
    ),
    Case("a seed that is not a number", AVERAGE + " seed=one", 2, "seed: should be a valid integer, got 'one'."),
    Case("a seed below zero", AVERAGE + " seed=-1", 2, "seed: should be greater than or equal to 0, got -1."),
    Case("a seed of many digits is accepted", AVERAGE + f" seed={10**40}", 0, NOT_EVALUATED),
    Case(
        "steps of the wrong type", KD + " method.steps=3.5", 2, "method.steps: should be a valid integer, got 3.5."
    ),
    Case("no steps", KD + " method.steps=0", 2, "method.steps: should be greater than or equal to 1, got 0."),
    Case(
        "a learning rate that is not finite",
        KD + " method.lr=inf",
        2,
        "method.lr: should be a finite number, got inf.",
    ),
    Case("a share above one", KD + " data.validation=1.5", 2, "data.validation: should be less than 1, got 1.5."),
    Case(
        "an interval without a unit",
        AVERAGE + " checkpoint.every=5h",
        2,
        ("checkpoint.every='5h': give a number of steps (200), or seconds or minutes with their unit (60s, 5m)."),
    ),
    Case(
        "too many workers",
        AVERAGE + " hardware.workers=100000",
        2,
        "hardware.workers: should be less than or equal to 256, got 100000.",
    ),
    Case(
        "an unknown device",
        AVERAGE + " hardware.device=tpu",
        2,
        "hardware.device='tpu': use auto, cpu, cuda, cuda:N or mps.",
    ),
    Case(
        "CUDA where there is none",
        AVERAGE + " hardware=gpu",
        2,
        (
            "hardware.device=cuda: no CUDA device is visible. Pass hardware=cpu, or install a torch build "
            "with CUDA and check `nvidia-smi`."
        ),
        lambda f, p: p.setattr(torch.cuda, "is_available", lambda: False),
    ),
    Case(
        "a rank above the width",
        KD.replace("method=kd", "method=fs_merge") + " method.maps=low_rank method.rank=9",
        2,
        ("method.rank=9 is above the width of the merged model (8). Take a rank below it, or method.maps=full."),
    ),
    Case(
        "a width that is no multiple of the number of heads",
        VITS + " method.width=13",
        2,
        "method.width=13 cannot be divided into 3 heads. Pass method.heads=... that divides it.",
    ),
    Case(
        "attention heads of an MLP",
        AVERAGE + " method.heads=2",
        2,
        "method.heads: an MLP has no attention heads. Leave method.heads at null.",
    ),
    Case(
        "a method that needs images, without a data set",
        two() + " method=kd",
        2,
        (
            f"method=kd needs unlabelled images and no data set is given. Pass --images FOLDER "
            f"(texts: data=text data.root=FOLDER), data=NAME ({DATA}), or method=average."
        ),
    ),
    Case(
        "zero images per task",
        KD + " data.images_per_task=0",
        2,
        (
            "this method needs unlabelled images. Pass data=... with data.images_per_task of 1 or more, "
            "data.auxiliary={name: generated}, or method=average, which needs none."
        ),
    ),
    Case(
        "an interpolation of an unknown key",
        AVERAGE + " 'seed=${nothing}'",
        2,
        ("seed: Interpolation key 'nothing' not found. Use an existing key in ${...}, or give a value."),
    ),
]
