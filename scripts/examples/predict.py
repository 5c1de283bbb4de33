"""Load a merged model and predict labels.

python scripts/examples/predict.py RUN [IMAGE]
"""

import sys

from PIL import Image

from fsmerge_cli import load_merged

model = load_merged(sys.argv[1])  # .to("cuda") moves it
image = sys.argv[2] if len(sys.argv) > 2 else Image.effect_noise((64, 64), 80)  # a path, or a PIL image

print("among the labels of all tasks:", model.predict(image, top_k=3))
for task in model.tasks:
    best = model.predict(image, task)
    print(f"{task}: {best.label} ({best.probability:.0%})")
