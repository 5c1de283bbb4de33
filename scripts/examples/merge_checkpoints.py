"""Merge two checkpoints that lie on disk, with the images of a folder.

    python scripts/examples/merge_checkpoints.py A B IMAGES [METHOD]

A, B: timm folders, files of weights, merged folders (docs/sources.md). IMAGES: a folder with one folder per task
in it, called like the checkpoints' files or folders; none of the images needs a label.
"""

import sys
from pathlib import Path

from fsmerge_cli import check, merge

paths, images = [Path(path) for path in sys.argv[1:3]], sys.argv[3]
method = sys.argv[4] if len(sys.argv) > 4 else "fs_merge"
models = [{"name": path.stem, "checkpoint": str(path)} for path in paths]

plan = check(models, method)  # raises with every reason why they cannot be merged
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
