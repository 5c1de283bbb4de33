"""Train two sources on one task each, merge them and evaluate the result.

python scripts/examples/finetune_then_merge.py [STEPS]
"""

import sys

from fsmerge_cli import evaluate, finetune, merge

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 500
ARCH = {"family": "mlp", "input_size": [1, 8, 8], "widths": [64, 64]}  # for a ViT: its timm name

for seed, (task, labels) in enumerate({"low": "01234", "high": "56789"}.items(), 1):
    source = finetune(
        {"arch": ARCH, "start": "random", "task": task, "labels": tuple(labels)},
        data="digits",
        training={"steps": STEPS, "lr": 0.003},
        seed=seed,
        output=f"outputs/{task}",
        overwrite=True,
    )
    print(task, source.scores[task].mean)

merge(
    [{"name": task, "checkpoint": f"outputs/{task}"} for task in ("low", "high")],
    data="digits",
    method={"name": "fs_merge", "targets": "all", "steps": STEPS},
    output="outputs/both",
    overwrite=True,
)
found = evaluate("outputs/both", data="digits", sources=True)
print({name: row.mean for name, row in found.scores.items()})
