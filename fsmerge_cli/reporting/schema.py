"""The form of evaluation.json: typed models, from which the published JSON schema is made.

    EvaluationFile -> MethodRow -> TaskScore
                   -> LayerSimilarity, Agreement, Training, Certificate, Cost, Provenance

Every key is required and no other is allowed, but for the protocols of a row, of which a model without several
heads has none, and for `agreement`, `joint_decision`, `measured_on`, `classes`, `joint_confusion`, `serving`,
`counted` and `validation_parts`, which earlier files of this version lack. Values are shares of 1 where nothing
else is stated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fsmerge_cli.common.errors import FsmergeError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.shown import shown
from fsmerge_cli.reporting.schema_results import (
    Agreement,
    ClassResults,
    Count,
    JointConfusion,
    LayerSimilarity,
    MeasuredOn,
    MethodRow,
    Model,
    Positive,
    Tokens,
)

NAME = "evaluation.schema.json"
VERSION = 4
DRAFT = "https://json-schema.org/draft/2020-12/schema"

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class CurvePoint(Model):
    """A loss after a step."""

    step: Positive
    loss: float


class LossParts(Model):
    """The loss on the validation images after a step, by its parts."""

    step: Positive
    features: float = Field(description="relative squared error of the features")
    logits: float = Field(description="weighted divergence of the heads' predictions")


class Training(Model):
    """The course of a training; empty for methods without one."""

    start_error: dict[str, float | None] = Field(description="relative feature error before step 1, by task")
    curve: list[CurvePoint] = Field(max_length=500, description="training loss: the mean since the point before")
    final_loss: float | None
    validation: list[CurvePoint] = Field(description="loss on the validation images")
    validation_parts: list[LossParts] = Field(
        default_factory=list, description="of methods whose loss has several parts"
    )
    chosen_step: Count = Field(description="step whose weights were kept")


class Holds(Model):
    """A comparison within its tolerance."""

    what: str
    status: Literal["holds"]
    error: Annotated[float, Field(ge=0)]
    tolerance: Annotated[float, Field(ge=0)]


class NotApplicable(Model):
    """A comparison that this method or model does not have."""

    what: str
    status: Literal["not applicable"]


Certificate = Annotated[Holds | NotApplicable, Field(discriminator="status")]


class Serving(Model):
    """The merged model with all heads, compared with all sources side by side, measured in this run."""

    images: Positive = Field(description="images of one forward pass")
    merged_bytes: Positive = Field(description="of the weights as written")
    sources_bytes: Positive = Field(description="of the sources' weights in the same number format")
    merged_ms: Annotated[float, Field(gt=0)] = Field(description="milliseconds per image, median of some passes")
    sources_ms: Annotated[float, Field(gt=0)] = Field(description="the same of all sources, one after the other")


class Cost(Model):
    """What the run took."""

    seconds: dict[str, Annotated[float, Field(ge=0)]] = Field(description="by phase")
    steps: Count
    trained_parameters: Count
    merged_parameters: Positive
    images: Count = Field(description="unlabelled images that the merge was given, views included")
    images_per_second: float | None = Field(description="training images per second of the phase fit")
    peak_memory_bytes: int | None
    serving: Serving | None = Field(None, description="null for `fsmerge evaluate` and `fsmerge finetune`")


class SourceOrigin(Model):
    """Where a source comes from."""

    name: str
    origin: str
    sha256: Hash


class Provenance(Model):
    """What is needed to repeat the run."""

    command: str
    seed: int
    device: str
    processes: Positive
    threads: Positive
    versions: dict[str, str]
    sources: Annotated[list[SourceOrigin], Field(min_length=1)] = Field(
        description="of the merge; of `fsmerge evaluate`, the model itself"
    )
    base: SourceOrigin | None = Field(None, description="the pretrained weights, where the method used them")
    images_sha256: Hash = Field(
        description="of the pixels and tasks of all images that the merge was given, in order; of `fsmerge "
        "evaluate`, of the images for calibration; of `fsmerge finetune`, of the training images and classes"
    )
    tests_sha256: Hash = Field(
        description="of the pixels and labels of the test images, by task: runs that share it were measured "
        "on the same images"
    )


class EvaluationFile(Model):
    """Quality, cost and provenance of one merge.

    `fsmerge evaluate` and `fsmerge finetune` write the same form and leave empty what only a merge has. Values are
    shares of 1 where nothing else is stated.
    """

    schema_version: Literal[4]
    method: str = Field(description="key of the method; unknown: the model is third-party")
    tasks: Annotated[list[str], Field(min_length=1)] = Field(description="names, in the order of the sources")
    rows: dict[str, MethodRow] = Field(
        description="each source on its own task, ensemble (all sources side by side), average (of the weights), "
        "kd (on request: distillation with the budget of the method), merged (the model itself); empty without "
        "test images"
    )
    similarity: dict[str, dict[str, LayerSimilarity]] = Field(description="by task and layer")
    predictions: dict[str, Agreement] = Field(description="by task, among the task's own labels")
    classes: dict[str, ClassResults] = Field(default_factory=dict, description="by task with labelled test images")
    joint_confusion: JointConfusion | None = Field(
        None, description="null for one task, for more than 30 classes, and without labels"
    )
    training: Training
    certificates: dict[str, Certificate] = Field(
        description="comparisons of the written files with independent computations"
    )
    measured_on: dict[str, MeasuredOn] = Field(
        default_factory=dict, description="by task, of a merge; empty where nothing was measured"
    )
    tokens: dict[str, Tokens] = Field(
        default_factory=dict, description="by vision transformer without a head, or whose tokens count"
    )
    facts: dict[str, int | float] = Field(description="figures of the method itself, such as condition numbers")
    inputs: Literal["image", "text"] = Field("image", description="what the models read")
    counted: Literal["word"] | None = Field(
        None,
        description="what counts and shares of test images count; null: inputs; word: the words of texts, of "
        "classifiers of tokens",
    )
    notes: list[str] = Field(
        description="for the user; those that begin with `warning: ` are shown above the scores"
    )
    cost: Cost
    provenance: Provenance
    config: dict[str, Any] = Field(description="every option of the run, resolved")


def text() -> str:
    """The JSON schema (draft 2020-12), as published."""
    schema = {"$schema": DRAFT, **EvaluationFile.model_json_schema(), "title": "evaluation.json of fsmerge"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def typed(evaluation: Mapping[str, Any]) -> EvaluationFile:
    """The value of an evaluation. Raises FsmergeError where it does not have the published form: a bug of ours."""
    try:
        # Through JSON: a tuple and a list are the same there, and what cannot be written is found here.
        return EvaluationFile.model_validate_json(json.dumps(evaluation))
    except (ValidationError, ValueError) as error:
        raise FsmergeError(
            "evaluation.json would not have its published form, please report it:\n" + "\n".join(_lines(error))
        ) from None


def read_evaluation(path: Path, advice: str) -> dict[str, Any]:
    """The content of an evaluation.json of this version. Raises UnreadableError; advice: its last sentence."""
    found = read_json_object(path, advice)
    try:
        EvaluationFile.model_validate_json(json.dumps(found))
    except (ValidationError, ValueError) as error:
        why = _lines(error)[0].removeprefix("  - ")
        raise UnreadableError(path, f"it is not that of a run of this version ({shown(why)})", advice) from None
    return found


def _lines(error: Exception) -> list[str]:
    if not isinstance(error, ValidationError):
        return [f"  - {error}"]
    return sorted(f"  - {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
