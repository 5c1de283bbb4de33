"""Load a merged model and predict labels.

python scripts/examples/predict.py RUN [IMAGE]
"""

import sys

import torch
from PIL import Image

from fsmerge_cli import load_merged
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.images.decode import open_image

model = load_merged(sys.argv[1])
prepare = ToPixels(model.arch.input_size, model.preprocessing)  # resize, crop, scale to 0..1
image = open_image(sys.argv[2]) if len(sys.argv) > 2 else Image.effect_noise((64, 64), 80)
pixels = prepare(image)[None]  # [1, C, H, W]

print("among the labels of all tasks:", model.predict(pixels))
for task in model.tasks:
    probability = torch.softmax(model.logits(pixels, task), 1).max().item()
    print(f"{task}: {model.predict(pixels, task)[0]} ({probability:.0%})")
