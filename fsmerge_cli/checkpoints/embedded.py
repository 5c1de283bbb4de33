"""Embedded sources: trained from a recipe on first use, then cached under a hash of all that they depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fsmerge_cli.architectures import Family
from fsmerge_cli.checkpoints.architecture import architecture
from fsmerge_cli.checkpoints.files import file_sha256
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.atomic import claim, write_json
from fsmerge_cli.common.cache import cache_folder
from fsmerge_cli.common.errors import ConfigError, SourceError, unknown
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.inputs import stack
from fsmerge_cli.common.locking import locked
from fsmerge_cli.common.options import build
from fsmerge_cli.common.own_files import first, not_ours
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.common.seeding import derive, generator
from fsmerge_cli.data import DATASETS, DataConfig, Task
from fsmerge_cli.data.base import ToPixels
from fsmerge_cli.data.text import grammar
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.models.source_spec import Recipe, SourceSpec

SEAL = "seal.json"
"""Written last: the SHA-256 of every file. An entry without it, or with a changed file, is trained again."""

ENTRY = re.compile(r"(config|seal|tokenizer|tokenizer_config)\.json|(model|heads)\.safetensors|vocab\.txt")
"""The files of an entry, which are replaced where it is damaged."""


def with_label_set(spec: SourceSpec) -> SourceSpec:
    """The same source with `labels` as a list, if it is the name of a label set of the recipe's data set."""
    if not isinstance(spec.labels, str):
        return spec
    if spec.recipe is None:
        raise ConfigError(
            f"source '{spec.name}': labels={spec.labels} names a label set, but only a source with a recipe has "
            "label sets. Pass a list, a file (.txt, .json) or `data`: models.sources.N.labels=[...]"
        )
    sets = _dataset(spec).label_sets()
    if spec.labels not in sets:
        raise ConfigError(f"source '{spec.name}': {unknown('label set', spec.labels, sets)}")
    return replace(spec, labels=sets[spec.labels])


def ensure_trained(spec: SourceSpec, progress: Progress) -> SourceSpec:
    """The same source with a checkpoint: unchanged if it has one, else trained from its recipe (or cached)."""
    if not is_embedded(spec):
        return spec
    spec = with_label_set(spec)
    folder = cache_folder() / "sources" / content_key(spec)
    lock_file = folder.parent / f"{folder.name}.lock"
    for own in (folder.parent, folder, lock_file):
        if own.is_symlink():
            raise ConfigError(
                f"{own} in the cache of embedded sources is a link, and links are not followed there. Remove it, "
                "or choose another folder: FSMERGE_CACHE=FOLDER"
            )
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock_file, wait=True))  # a second process waits, then finds the entry
        except OSError:
            raise ConfigError(
                f"cannot write the cache of embedded sources, {folder.parent}. "
                "Choose another folder: FSMERGE_CACHE=FOLDER"
            ) from None
        if not _is_intact(folder):
            size = spec.recipe.batch_size if spec.recipe else 0
            if folder.exists() and (found := not_ours(folder, ENTRY)):
                raise ConfigError(
                    f"{folder} in the cache of embedded sources is damaged, and it is not replaced, because it "
                    f"holds what fsmerge did not write: {first(found)}. Move it away, or choose another folder: "
                    "FSMERGE_CACHE=FOLDER"
                )
            train: Callable[[Path, SourceSpec, Progress], None]
            train = _train_text_into if _is_text(spec) else _train_into
            if (start := _start(spec)) is not None:
                train = partial(_finetune_into, ensure_trained(start, progress))
            train(folder, spec, lambda event: progress(replace(event, images=size)))
    return replace(spec, checkpoint=str(folder))


def cached_folder(spec: SourceSpec) -> Path | None:
    """The cache folder of an embedded source, None if not cached; `ensure_trained` verifies its hashes."""
    folder = cache_folder() / "sources" / content_key(with_label_set(spec))
    return folder if (folder / SEAL).is_file() else None


def is_embedded(spec: SourceSpec) -> bool:
    """Whether a source is trained on first use. Raises SourceError if arch or labels are missing."""
    if spec.checkpoint is not None or spec.module is not None or spec.recipe is None:
        return False
    if not isinstance(with_label_set(spec).labels, tuple) or spec.arch is None:
        raise SourceError(f"source '{spec.name}': a recipe also needs arch and labels.")
    return True


def content_key(spec: SourceSpec) -> str:
    """Name of the cache entry, with a hash of everything that the weights depend on, including the code."""
    family, _ = architecture(spec, {}, f"source '{spec.name}'")
    code: list[Any] = [family.build, fit_classifier, _train_into, sys.modules[_dataset(spec).__module__]]
    if family.kind == "text":
        code += [_train_text_into, sys.modules[family.build.__module__], grammar]
    recipe = asdict(spec.recipe) if spec.recipe else {}
    recipe.pop("start", None)
    more: dict[str, Any] = {}
    if (start := _start(spec)) is not None:
        more = {"start": content_key(with_label_set(start))}
        code.append(_finetune_into)
    content = {
        "arch": spec.arch,
        "labels": spec.labels,
        "recipe": recipe or None,
        **more,
        "code": [hashlib.sha256(inspect.getsource(part).encode()).hexdigest() for part in code],
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w.-]+", "_", spec.name)  # part of a folder name
    return f"{family.name}-{name}-{digest[:16]}"


def _start(spec: SourceSpec) -> SourceSpec | None:
    """The entry whose weights the recipe of `spec` fine-tunes; None for random weights. Raises ConfigError."""
    given = spec.recipe.start if spec.recipe else None
    if given is None:
        return None
    where = f"source '{spec.name}': recipe.start"
    found = build(SourceSpec, {**given, "name": "base"}, where)
    if not is_embedded(found) or found.arch != spec.arch:
        raise ConfigError(f"{where}: should be an entry with a recipe and with the arch of '{spec.name}'.")
    return found


def _is_intact(folder: Path) -> bool:
    try:
        seal = read_json_object(folder / SEAL)
        return bool(seal) and all(file_sha256(folder / name) == sha256 for name, sha256 in seal.items())
    except (UnreadableError, OSError, ValueError):
        return False


def _train_into(folder: Path, spec: SourceSpec, progress: Progress) -> None:
    family, arch = architecture(spec, {}, f"source '{spec.name}'")
    labels = spec.labels if isinstance(spec.labels, tuple) else ()
    data = _dataset(spec)()  # type: ignore[call-arg]  # concrete data sets have defaults
    images = data.build("train", Task(spec.name, labels), ToPixels(arch.input_size))
    if images is None:
        raise SourceError(f"source '{spec.name}': {data.name} has no training images.")
    pairs = [images[i] for i in range(len(images))]
    pixels, classes = torch.stack([p for p, _ in pairs]), torch.tensor([c for _, c in pairs])
    recipe = spec.recipe or Recipe(data="", seed=0)
    backbone, head = fit_classifier(family, arch, len(labels), pixels, classes, recipe, spec.name, progress)
    _store(folder, spec, family, arch, backbone, head)


def _finetune_into(start: SourceSpec, folder: Path, spec: SourceSpec, progress: Progress) -> None:
    """As `_train_into`, from the weights in the folder of `start` and with a new head."""
    family, arch = architecture(spec, {}, f"source '{spec.name}'")
    labels = spec.labels if isinstance(spec.labels, tuple) else ()
    images = _dataset(spec)().build("train", Task(spec.name, labels), ToPixels(arch.input_size))  # type: ignore[call-arg]
    if images is None or spec.recipe is None or family.kind == "text":
        raise SourceError(
            f"source '{spec.name}': recipe.start fine-tunes networks of images, with training images."
        )
    pixels, classes = zip(*(images[i] for i in range(len(images))))
    state = load_file(Path(start.checkpoint or "") / "model.safetensors")

    def build_started(arch: Any) -> nn.Module:
        module = family.build(arch)
        module.load_state_dict(state)
        return module

    started = replace(family, build=build_started)
    inputs, targets = torch.stack(pixels), torch.tensor(classes)
    backbone, head = fit_classifier(started, arch, len(labels), inputs, targets, spec.recipe, spec.name, progress)
    _store(folder, spec, family, arch, backbone, head)


def _is_text(spec: SourceSpec) -> bool:
    return architecture(spec, {}, f"source '{spec.name}'")[0].kind == "text"


def _train_text_into(folder: Path, spec: SourceSpec, progress: Progress) -> None:
    """As `_train_into`, for a text encoder: its tokenizer is written beside it."""
    family, arch = architecture(spec, {}, f"source '{spec.name}'")
    labels, kind = spec.labels if isinstance(spec.labels, tuple) else (), _dataset(spec)
    tokens, recipe = kind.tokenization(), spec.recipe or Recipe(data="", seed=0)
    if tokens is None:
        raise SourceError(f"source '{spec.name}': recipe.data: {recipe.data} has no tokenizer.")
    read = ToTokens(tokens.state, min(arch.longest, tokens.longest), arch.types)
    data: DataConfig = kind()  # type: ignore[call-arg]  # concrete data sets have defaults
    texts = data.build("train", Task(spec.name, labels), read)
    if texts is None:
        raise SourceError(f"source '{spec.name}': {data.name} has no training texts.")
    items, classes = zip(*(texts[i] for i in range(len(texts))))
    # The trainer indexes and counts its inputs, as tensors and texts allow.
    inputs: Any = stack(items)
    backbone, head = fit_classifier(
        family, arch, len(labels), inputs, torch.tensor(classes), recipe, spec.name, progress
    )
    _store(folder, spec, family, arch, backbone, head, tokens.files)


def fit_classifier(
    family: Family,
    arch: Any,
    classes: int,
    pixels: Tensor,
    labels: Tensor,
    recipe: Recipe,
    name: str,
    progress: Progress,
) -> tuple[nn.Module, nn.Linear]:
    """An ordinary classifier: AdamW, one-cycle, cross-entropy; backbone in evaluation mode and its head."""
    with torch.random.fork_rng(devices=[]):  # layers draw their start from the global generator
        torch.manual_seed(derive(recipe.seed, "zoo", "start"))
        backbone, head = family.build(arch), nn.Linear(arch.features, classes)
    parameters: Sequence[nn.Parameter] = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    random = generator(recipe.seed, "zoo", "batches")
    for step in range(recipe.steps):
        rows = torch.randint(len(pixels), (recipe.batch_size,), generator=random)
        loss = F.cross_entropy(head(backbone(pixels[rows])), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()
        progress(Event(f"train source {name}", step + 1, recipe.steps, {"loss": loss.item()}))
    return backbone.eval(), head


def _dataset(spec: SourceSpec) -> type[DataConfig]:
    name = spec.recipe.data if spec.recipe else ""
    if name not in DATASETS:
        raise ConfigError(f"source '{spec.name}': recipe.data: {unknown('data set', name, DATASETS)}")
    return DATASETS[name]


def _store(
    folder: Path,
    spec: SourceSpec,
    family: Family,
    arch: Any,
    backbone: nn.Module,
    head: nn.Linear,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write the trained source and the hashes of its files. files: of a tokenizer, by name."""
    labels = spec.labels if isinstance(spec.labels, tuple) else ()
    with claim(folder, overwrite=True, replaced=ENTRY) as temporary:
        write_model(
            temporary,
            model_config(family, arch),
            backbone.state_dict(),
            {f"{spec.name}.weight": head.weight, f"{spec.name}.bias": head.bias},
            {"labels": {spec.name: list(labels)}},
            files,
        )
        write_json(temporary / SEAL, {path.name: file_sha256(path) for path in sorted(temporary.glob("[!.]*"))})
