"""Images that cannot be read."""

from __future__ import annotations

import pickle

import numpy as np
from PIL import Image

from tests.support.bad_inputs.case import (
    DATA,
    KD,
    Case,
    Trap,
    animated,
    bomb,
    both,
    cut,
    images,
    make,
    only,
    put,
    sixteen,
)

REUSED = (
    "nothing is held back of 'a', 'b' (fewer than 16 images): agreement with the sources is measured on images "
    "that the merge used, so it is optimistic"
)
HELD = (
    "there are no test images, so images are held back from the merge and measure it: 16 of the auxiliary "
    "images (data.held_back=0.2)"
)
DARK = (
    "task '{}': no pixel of its images is above {} of the range 0..1: if they are stored with fewer bits than "
    "their files have, scale them to the whole range"
)

IMAGES = [
    Case(
        "a missing image folder",
        KD + " data.root=nowhere",
        2,
        "data.root=nowhere: no such folder.",
        installed=True,
    ),
    Case(
        "no root",
        KD + " data.root=null",
        2,
        "data=folder needs data.root=PATH, a folder with one folder per task in it.",
    ),
    Case(
        "a root in the home folder of an unknown user",
        KD + " 'data.root=\"~nobody-of-that-name\"'",
        2,
        (
            "data.root='~nobody-of-that-name' cannot be used (Could not determine home directory). Pass "
            "another path."
        ),
    ),
    Case(
        "no folder for a task",
        KD,
        2,
        "data=folder: no folder for task 'a' in images. Found: A, b. "
        "Name one folder after each task, or put "
        "the images of all tasks directly into the root.",
        lambda f, p: (f / "images/a").rename(f / "images/A"),
    ),
    Case(
        "an empty folder of images",
        KD,
        2,
        (
            "data=folder: no images for task 'a' in images/a. Put images there (.bmp, .gif, .jfif, .jpeg, .jpg, "
            ".pgm, .png, .ppm, .tif, .tiff, .webp), flat or in class folders."
        ),
        only("a", 0),
        quick=True,
    ),
    Case(
        "class folders that are not labels",
        KD,
        2,
        (
            "data=folder: the class folders cat in images/a are not labels of task 'a' (a-0, a-1, a-2). "
            "Rename the folders, pass models.sources.N.labels=[...] (labels=data: the folders' names, sorted), or "
            "data.class_folders=none (test: only folders in test/ are classes) to use images without labels."
        ),
        both(make("images/a/cat"), images(lambda path: Image.new("L", (4, 4)).save(path), ("a/cat/0.png",))),
    ),
    Case(
        "an image that is text",
        KD,
        2,
        "the image images/a/1.png cannot be read ({library}). Repair or remove it.",
        put("images/a/1.png", "not an image"),
    ),
    Case(
        "an empty image file",
        KD,
        2,
        "the image images/a/1.png cannot be read ({library}). Repair or remove it.",
        put("images/a/1.png", b""),
    ),
    Case(
        "three images that cannot be read, skipped",
        KD + " data.bad_files=skip data.images_per_task=all",
        0,
        (
            f"{DARK.format('a', 0)}\n"
            "task 'a': 2 images skipped, unreadable: images/a/1.png, images/a/2.png\n"
            "task 'b': 1 image skipped, unreadable: images/b/0.png\n"
            f"{REUSED}"
        ),
        both(put("images/a/1.png", ""), both(put("images/a/2.png", "x"), put("images/b/0.png", b""))),
    ),
    Case(
        "three images that cannot be read, refused",
        KD,
        2,
        (
            "3 images cannot be read:\n"
            "  - the image images/a/1.png cannot be read ({library}). Repair or remove it.\n"
            "  - the image images/a/2.png cannot be read ({library}). Repair or remove it.\n"
            "  - the image images/b/0.png cannot be read ({library}). Repair or remove it."
        ),
        both(put("images/a/1.png", ""), both(put("images/a/2.png", "x"), put("images/b/0.png", b""))),
    ),
    Case(
        "a task without a data set of its own",
        KD.replace("data=folder data.root", "data=per_task data.tasks.a.name=folder data.tasks.a.root"),
        2,
        (
            "data=per_task: no data set for task 'b' in data.tasks. Listed: a. Pass "
            "data.tasks.b={name: folder, root: PATH}"
        ),
        installed=True,
    ),
    Case(
        "a wrong key of one task's data set",
        KD.replace("data=folder data.root=images", "data=per_task 'data.tasks.a={name: folder, rot: images}'"),
        2,
        (
            "unknown key in data.tasks.a 'rot'. Did you mean 'root'? Available: augment, auxiliary, bad_files, "
            "class_folders, held_back, images_per_task, name, root, test_share, validation, views."
        ),
    ),
    Case(
        "float arrays outside the pixel range",
        KD.replace("data=folder data.root=images", "data=tensors data.train={task}.npy"),
        2,
        (
            "a.npy: images should be uint8, uint16 or bool, or floats in 0..1, and range from -1 to -1. Save the "
            "pixels without normalisation, divided by 255."
        ),
        lambda f, p: np.save(f / "a.npy", -np.ones((4, 4, 4), np.float32)),
    ),
    Case(
        "arrays in a pickle that runs code",
        KD.replace("data=folder data.root=images", "data=tensors data.train={task}.pt"),
        2,
        "a.pt cannot be read ({library}). Pass another data.train=PATH, data.test=PATH.",
        lambda f, p: (f / "a.pt").write_bytes(pickle.dumps({"images": Trap()})),
    ),
    Case(
        "a torchvision data set that is not downloaded",
        KD.replace("data=folder data.root=images", "data=torchvision data.dataset=MNIST data.root=images"),
        2,
        (
            "data=torchvision: MNIST(root='images', train=False, download=False) cannot be opened ({library}). "
            "Pass another data.root=PATH or data.args={...}, or data.download=true."
        ),
    ),
    Case(
        "a folder without a Hugging Face data set",
        KD.replace("data=folder data.root=images", "data=hf data.path=a"),
        2,
        "data=hf: a cannot be loaded ({library}). Pass another data.path=PATH.",
    ),
    Case(
        "an unknown auxiliary data set",
        KD + " data.auxiliary.name=generatd",
        2,
        f"unknown data.auxiliary 'generatd'. Did you mean 'generated'? Available: {DATA}.",
    ),
    Case(
        "no images of the tasks, and no evaluation",
        KD.replace("data=folder data.root=images data.images_per_task=3", "data=none data.images_per_task=4"),
        0,
        f"4 auxiliary unlabelled images (generated)\n{HELD}",
    ),
    Case(
        "an unknown value of bad_files",
        KD + " data.bad_files=ignore",
        2,
        "data.bad_files: should be 'refuse' or 'skip', got 'ignore'.",
    ),
    Case(
        "an image cut off",
        KD,
        2,
        "the image images/a/1.png cannot be read ({library}). Repair or remove it.",
        cut("images/a/1.png", 40),
    ),
    Case(
        "an image that claims 900 million pixels",
        KD,
        2,
        "the image images/a/0.png cannot be read ({library}). Repair or remove it.",
        images(bomb),
    ),
    Case(
        "a broken chunk in an image",
        KD,
        2,
        "the image images/a/0.png cannot be read ({library}). Repair or remove it.",
        images(lambda path: path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX"))),
    ),
    Case(
        "a text file as data.root",
        KD + " data.root=a/config.json",
        2,
        "data.root=a/config.json: no such folder.",
    ),
    Case(
        "colour images for grey-scale sources",
        KD,
        0,
        REUSED,
        images(lambda path: Image.new("RGB", (4, 4), (9, 200, 30)).save(path)),
    ),
    Case(
        "a CMYK image",
        KD,
        0,
        REUSED,
        images(lambda path: Image.new("CMYK", (4, 4), (9, 200, 30, 5)).save(path), ("a/3.jpg",)),
    ),
    Case("a 16-bit image", KD, 0, REUSED, images(sixteen)),
    Case(
        "an animated image",
        KD,
        0,
        REUSED,
        images(animated, ("a/3.gif",)),
    ),
    Case(
        "a transparent palette image",
        KD,
        0,
        REUSED,
        images(lambda path: Image.new("P", (4, 4)).save(path, transparency=b"\x00\x80")),
    ),
    Case(
        "an image of one pixel",
        KD,
        0,
        REUSED,
        images(lambda path: Image.new("L", (1, 1), 7).save(path)),
    ),
    Case(
        "one image per task",
        KD,
        0,
        (
            "task 'a' has 1 images, fewer than images_per_task=3; all of them are used\n"
            "task 'b' has 1 images, fewer than images_per_task=3; all of them are used\n"
            f"{DARK.format('a', 0)}\n{DARK.format('b', 0.00392)}\n"
            f"{REUSED}"
        ),
        both(only("a", 1), only("b", 1)),
    ),
    Case(
        "fewer images than the batch",
        KD + " method.batch_size=64",
        0,
        REUSED,
    ),
    Case(
        "fewer images than requested",
        KD + " data.images_per_task=50",
        0,
        (
            "task 'a' has 3 images, fewer than images_per_task=50; all of them are used\n"
            "task 'b' has 3 images, fewer than images_per_task=50; all of them are used\n"
            f"{REUSED}"
        ),
    ),
]
