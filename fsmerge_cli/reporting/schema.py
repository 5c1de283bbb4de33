"""The form of evaluation.json: typed models, from which the published JSON schema is made.

    EvaluationFile -> MethodRow -> TaskScore
                   -> LayerSimilarity, Agreement, Training, Certificate, Cost, Provenance

Every key is required and no other is allowed, but for the protocols of a row, of which a model without several
heads has none, and for `agreement`,
`joint_decision` and `measured_on`, which earlier files of this version lack. Values are shares
of 1 where nothing else is stated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fsmerge_cli.common.errors import FsmergeError
from fsmerge_cli.common.foreign_files import UnreadableError, read_json_object
from fsmerge_cli.common.shown import shown

NAME = "evaluation.schema.json"
VERSION = 4
DRAFT = "https://json-schema.org/draft/2020-12/schema"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Model(BaseModel):
    """Nothing else, nothing converted, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TaskScore(_Model):
    """Scores on the test images of one task, among the task's own labels."""

    count: Positive = Field(description="test images")
    top1: Share = Field(description="top-1 accuracy")
    interval: tuple[Share, Share] = Field(description="Wilson's 95 % interval of top1")
    top5: Share | None = Field(description="top-5 accuracy; null for five labels or fewer")
    loss: float = Field(description="mean cross-entropy, nats")
    calibration_error: Share = Field(description="expected calibration error, 15 bins")
    relative: float | None = Field(description="top1 divided by the source's own top1")


class Joint(_Model):
    """Joint accuracy by protocol: the task is not given, the prediction is the best label of all tasks."""

    softmax: Share | None = Field(None, description="largest probability, softmax per head")
    logits: Share | None = Field(None, description="largest raw logit")
    softmax_calibrated: Share | None = Field(None, description="as softmax, after one temperature per head")
    logits_calibrated: Share | None = Field(None, description="as logits, after one temperature per head")
    classifier: Share | None = Field(
        None,
        description="the decision of classifier/ and `fsmerge predict`: largest logit after a temperature and a "
        "shift per head, best on the unlabelled images that the merge was given",
    )


Chosen = dict[str, dict[str, Count]]


class ChosenTasks(_Model):
    """Numbers of test images by task of the image and task of the predicted label, by protocol."""

    softmax: Chosen | None = Field(None, description="largest probability, softmax per head")
    logits: Chosen | None = Field(None, description="largest raw logit")


class SameLabel(_Model):
    """Predictions of a model compared with those of the source of the task."""

    images: Positive
    same: Count = Field(description="images on which both predict the same label of the task")


class HeadDecision(_Model):
    """The part of one head in the joint decision: its logits / temperature + shift are compared."""

    temperature: Annotated[float, Field(gt=0)]
    shift: float


class MeasuredOn(_Model):
    """The images that measure one task."""

    images: Positive
    kind: Literal["test", "held_back", "merge"] = Field(
        description="test: test images; held_back: images that the merge did not use, where there are no test "
        "images; merge: images that the merge used, since there are too few to hold some back"
    )
    of: Literal["task", "all", "auxiliary"] = Field(
        description="whose they are: of the task, of all tasks, or auxiliary ones, of no task; the last two "
        "measure several tasks"
    )


class MethodRow(_Model):
    """One model, or an ensemble, on the test images of all tasks."""

    tasks: dict[str, TaskScore] = Field(description="by task")
    mean_top1: Share | None = Field(description="mean of top1 over tasks")
    mean_relative: float | None = Field(description="mean of relative over tasks")
    joint_top1: Joint = Field(description="joint accuracy; empty where there is one task, or no label")
    chosen_tasks: ChosenTasks = Field(description="which task's label is predicted; empty for a single source")
    temperatures: dict[str, Annotated[float, Field(gt=0)]] = Field(
        description="by task; fitted on the unlabelled images that the merge was given"
    )
    joint_decision: dict[str, HeadDecision] = Field(
        default_factory=dict, description="by task; of the protocol `classifier`; empty for fewer than two heads"
    )
    feature_error: dict[str, float | None] = Field(
        description="squared error of the projected features of a task, relative to their variance"
    )
    feature_cosine: dict[str, float | None] = Field(description="mean cosine to the source's features")
    feature_cka: dict[str, float | None] = Field(description="linear CKA with the source's features")
    agreement: dict[str, SameLabel] = Field(
        default_factory=dict, description="by task with a head; empty for the sources and without them"
    )


class LayerSimilarity(_Model):
    """The merged model compared with a source at one layer, on the source's task."""

    cka: float | None = Field(description="linear CKA")
    cosine: float | None = Field(description="unit by unit; null where widths differ")
    error: float | None = Field(description="relative squared error, unit by unit; null where widths differ")


class Confusion(_Model):
    """A frequent mistake of the merged model."""

    label: str = Field(description="the true label")
    prediction: str
    count: Positive = Field(description="test images on which the merged model makes it")
    source: Count = Field(description="test images on which the source makes it")


class Agreement(_Model):
    """Predictions of the merged model compared with those of one source."""

    images: Positive = Field(description="test images")
    same_as_source: Count = Field(description="images on which both predict the same label, correct or not")
    pairs: list[Confusion] = Field(max_length=10, description="the most frequent mistakes of the merged model")


class CurvePoint(_Model):
    """A loss after a step."""

    step: Positive
    loss: float


class Training(_Model):
    """The course of a training; empty for methods without one."""

    start_error: dict[str, float | None] = Field(description="relative feature error before step 1, by task")
    curve: list[CurvePoint] = Field(max_length=500, description="training loss: the mean since the point before")
    final_loss: float | None
    validation: list[CurvePoint] = Field(description="loss on the validation images")
    chosen_step: Count = Field(description="step whose weights were kept")


class Holds(_Model):
    """A comparison within its tolerance."""

    what: str
    status: Literal["holds"]
    error: Annotated[float, Field(ge=0)]
    tolerance: Annotated[float, Field(ge=0)]


class NotApplicable(_Model):
    """A comparison that this method or model does not have."""

    what: str
    status: Literal["not applicable"]


Certificate = Annotated[Holds | NotApplicable, Field(discriminator="status")]


class Cost(_Model):
    """What the run took."""

    seconds: dict[str, Annotated[float, Field(ge=0)]] = Field(description="by phase")
    steps: Count
    trained_parameters: Count
    merged_parameters: Positive
    images: Count = Field(description="unlabelled images that the merge was given, views included")
    images_per_second: float | None = Field(description="training images per second of the phase fit")
    peak_memory_bytes: int | None


class SourceOrigin(_Model):
    """Where a source comes from."""

    name: str
    origin: str
    sha256: Hash


class Provenance(_Model):
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
    images_sha256: Hash = Field(
        description="of the pixels and tasks of all images that the merge was given, in order; of `fsmerge "
        "evaluate`, of the images for calibration; of `fsmerge finetune`, of the training images and classes"
    )
    tests_sha256: Hash = Field(
        description="of the pixels and labels of the test images, by task: runs that share it were measured "
        "on the same images"
    )


class EvaluationFile(_Model):
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
    training: Training
    certificates: dict[str, Certificate] = Field(
        description="comparisons of the written files with independent computations"
    )
    measured_on: dict[str, MeasuredOn] = Field(
        default_factory=dict, description="by task, of a merge; empty where nothing was measured"
    )
    facts: dict[str, int | float] = Field(description="figures of the method itself, such as condition numbers")
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
