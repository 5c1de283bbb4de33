"""Data sets. To add one: write one file here, one line below and one YAML in configs/data.

Those of other packages come from the entry points `fsmerge.data`, those of scripts from `fsmerge_cli.register`.
"""

from __future__ import annotations

from functools import partial

from fsmerge_cli.common import plugins
from fsmerge_cli.common.errors import ConfigError, DataError, unknown
from fsmerge_cli.common.options import choose
from fsmerge_cli.common.plugins import Registry, check_options
from fsmerge_cli.common.shown import brief
from fsmerge_cli.data.base import DataConfig, ImageSet, Task, Transform
from fsmerge_cli.data.images.digits import Digits
from fsmerge_cli.data.images.folder import Folder
from fsmerge_cli.data.images.generated import Generated
from fsmerge_cli.data.images.glyphs import Glyphs
from fsmerge_cli.data.images.hf import HuggingFace
from fsmerge_cli.data.images.tensors import Tensors
from fsmerge_cli.data.images.torchvision import TorchVision
from fsmerge_cli.data.none import NoImages
from fsmerge_cli.data.per_task import PerTask
from fsmerge_cli.data.text.hf_text import HuggingFaceTexts
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.data.text.text import Texts

SHIPPED: dict[str, type[DataConfig]] = {
    "digits": Digits,
    "folder": Folder,
    "generated": Generated,
    "glyphs": Glyphs,
    "hf": HuggingFace,
    "hf_text": HuggingFaceTexts,
    "none": NoImages,
    "per_task": PerTask,
    "sentences": Sentences,
    "tensors": Tensors,
    "text": Texts,
    "torchvision": TorchVision,
}

DATASETS: Registry[type[DataConfig]] = Registry(plugins.DATA, SHIPPED, partial(check_options, DataConfig))


def auxiliary(config: DataConfig) -> tuple[DataConfig, tuple[str, ...] | None] | None:
    """The data set of `data.auxiliary` and the labels to take from it (None: all); None without `data.auxiliary`.

    Raises ConfigError if a key is wrong.
    """
    if config.auxiliary is None:
        return None
    count = {"images_per_task": config.images_per_task} if config.auxiliary_only else {}
    values = {"name": None, **count, **config.auxiliary}
    labels = values.pop("labels", None)
    found = choose(DATASETS, values, "data.auxiliary")
    if found.auxiliary is not None:
        raise ConfigError(
            "data.auxiliary.auxiliary: auxiliary data cannot have auxiliary data of its own. Remove this key."
        )
    if isinstance(labels, str):
        sets = found.label_sets()
        if labels not in sets:
            raise ConfigError(f"data.auxiliary.labels: {unknown('label set', labels, sets)}")
        labels = sets[labels]
    if labels is not None and not (isinstance(labels, list | tuple) and all(isinstance(x, str) for x in labels)):
        raise ConfigError(
            f"data.auxiliary.labels={brief(labels)}: should be a list of labels, or the name of a label set."
        )
    return found, None if labels is None else tuple(labels)


def auxiliary_images(config: DataConfig, transform: Transform) -> tuple[ImageSet, DataConfig] | None:
    """The auxiliary images, and the data set whose options set how many are sampled; raises DataError."""
    found = auxiliary(config)
    if found is None:
        if not config.auxiliary_only:
            return None
        found = config, None
    try:
        images = found[0].build("train", Task("", found[1]), transform)
    except DataError as error:
        if config.auxiliary_only:
            raise
        raise DataError(f"data.auxiliary: {error}") from None
    return None if images is None else (images, found[0])


__all__ = ["DATASETS", "DataConfig", "ImageSet", "Task", "auxiliary", "auxiliary_images"]
