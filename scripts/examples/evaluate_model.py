"""Evaluate a written model and its sources; save the metrics and the report page.

python scripts/examples/evaluate_model.py RUN
"""

import sys

from fsmerge_cli import evaluate

# "from_run": the data of the merge; {"name": "folder", "root": ...} for other images
found = evaluate(sys.argv[1], data="from_run", sources=True)
for name, row in found.scores.items():
    for task, score in row.tasks.items():
        low, high = score.interval
        print(f"{name:>10} on {task}: {score.top1:.1%} ({low:.1%} to {high:.1%}) of {score.count}")
print("joint accuracy, among the labels of all tasks:", found.scores["merged"].joint)
found.save("measured.json", overwrite=True)
found.save_report("measured.html", overwrite=True)
