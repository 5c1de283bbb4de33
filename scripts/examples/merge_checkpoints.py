"""Merge two checkpoint files with the images of a folder.

    python scripts/examples/merge_checkpoints.py A B IMAGES [METHOD]

A, B: timm folders, weight files or merged folders (docs/sources.md). IMAGES: a folder with one subfolder per task,
named like the checkpoint files or folders; the images need no labels.
"""

import sys
from pathlib import Path

from fsmerge_cli import check, merge

paths, images = [Path(path) for path in sys.argv[1:3]], sys.argv[3]
method = sys.argv[4] if len(sys.argv) > 4 else "fs_merge"
models = [{"name": path.stem, "checkpoint": str(path)} for path in paths]

plan = check(models, method)  # raises an error that lists all reasons why they cannot be merged
print(plan.family.name, plan.tasks)

result = merge(
    models,
    method=method,
    data={"name": "folder", "root": images, "images_per_task": 50},
    output="outputs/merged-checkpoints",
    overwrite=True,
)
for name, row in result.scores.items():
    print(name, row.mean)
for note in result.notes:
    print("note:", note)
