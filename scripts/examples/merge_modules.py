"""Merge torch modules in memory; the modules are not changed.

python scripts/examples/merge_modules.py
"""

import timm
import torch

from fsmerge_cli import load_source, merge

# A small network for this example; without these options it is ViT-S.
SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
}
a, b = (timm.create_model("vit_small_patch16_224", num_classes=n, **SMALL).eval() for n in (3, 5))

source = load_source(a, name="a", labels=["cat", "dog", "bird"])
print(source.family.name, source.labels, sum(t.numel() for t in source.weights.values()))

result = merge(
    [
        {"name": "a", "module": a, "labels": ["cat", "dog", "bird"]},
        {"name": "b", "module": b, "mean": [0.5], "std": [0.5]},  # the preprocessing of b
    ],
    method="average",  # needs no images; the other methods need data=...
)
images = torch.rand(2, 3, 32, 32)  # pixels in 0..1
features = result.backbone()(images)
print({task: head(features).shape for task, head in result.heads.items()})
result.save("outputs/merged-modules", overwrite=True)
