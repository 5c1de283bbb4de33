"""The part of evaluation.json on quality: scores, similarity, and predictions by class."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Nothing else, nothing converted, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TaskScore(Model):
    """Scores on the test images of one task, among the task's own labels."""

    count: Positive = Field(description="test images")
    top1: Share = Field(description="top-1 accuracy")
    interval: tuple[Share, Share] = Field(description="Wilson's 95 % interval of top1")
    top5: Share | None = Field(description="top-5 accuracy; null for five labels or fewer")
    loss: float = Field(description="mean cross-entropy, nats")
    calibration_error: Share = Field(description="expected calibration error, 15 bins")
    relative: float | None = Field(description="top1 divided by the source's own top1")


class NumberScore(Model):
    """Scores of predicted numbers on the test texts of one task."""

    count: Positive = Field(description="test texts with a number")
    pearson: Correlation | None = Field(description="Pearson's correlation with the labels; null for constants")
    spearman: Correlation | None = Field(description="Spearman's rank correlation; null for constants")
    loss: float = Field(description="mean squared error")
    relative: float | None = Field(description="pearson divided by the source's own")


class Joint(Model):
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


class ChosenTasks(Model):
    """Numbers of test images by task of the image and task of the predicted label, by protocol."""

    softmax: Chosen | None = Field(None, description="largest probability, softmax per head")
    logits: Chosen | None = Field(None, description="largest raw logit")


class SameLabel(Model):
    """Predictions of a model compared with those of the source of the task."""

    images: Positive
    same: Count = Field(description="images on which both predict the same label of the task")


class SameNeighbours(Model):
    """Images that are nearest to an image by a model's estimate of a source's features, and by these features."""

    images: Positive = Field(description="each is compared with all others, by cosine")
    nearest: Count = Field(description="images whose nearest image is the same")
    among: Count = Field(description="images whose nearest image by the source is one of the model's ten nearest")


class LinearProbe(Model):
    """A linear classifier of a task without a head, on a model's estimate of the features of its source."""

    images: Positive = Field(description="labelled test images; each is predicted by a probe fitted to others")
    classes: Annotated[int, Field(ge=2)]
    top1: Share


class Tokens(Model):
    """The projected patch tokens of the merged model compared with those of a source."""

    images: Positive
    positions: Positive = Field(description="patches of an image")
    cosine: float = Field(description="mean over tokens")
    explained: float = Field(
        description="share of the variance of the source's tokens; negative: worse than its mean"
    )
    same_place: Share = Field(
        description="tokens whose most similar token of the source, in the same image, is the one at their place"
    )


class HeadDecision(Model):
    """The part of one head in the joint decision: its logits / temperature + shift are compared."""

    temperature: Annotated[float, Field(gt=0)]
    shift: float


class MeasuredOn(Model):
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


class MethodRow(Model):
    """One model, or an ensemble, on the test images of all tasks."""

    tasks: dict[str, TaskScore] = Field(description="by task that predicts classes")
    numbers: dict[str, NumberScore] = Field(default_factory=dict, description="by task that predicts a number")
    mean_top1: Share | None = Field(description="mean of top1 over tasks")
    mean_relative: float | None = Field(description="mean of relative over tasks, also over those of `numbers`")
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
    neighbours: dict[str, SameNeighbours] = Field(
        default_factory=dict, description="by task without a head; empty for the sources and for few images"
    )
    probes: dict[str, LinearProbe] = Field(
        default_factory=dict, description="by task without a head and with labelled images"
    )


class LayerSimilarity(Model):
    """The merged model compared with a source at one layer, on the source's task."""

    cka: float | None = Field(description="linear CKA")
    cosine: float | None = Field(description="unit by unit; null where widths differ")
    error: float | None = Field(description="relative squared error, unit by unit; null where widths differ")


class Confusion(Model):
    """A frequent mistake of the merged model."""

    label: str = Field(description="the true label")
    prediction: str
    count: Positive = Field(description="test images on which the merged model makes it")
    source: Count = Field(description="test images on which the source makes it")


class Agreement(Model):
    """Predictions of the merged model compared with those of one source."""

    images: Positive = Field(description="test images")
    same_as_source: Count = Field(description="images on which both predict the same label, correct or not")
    pairs: list[Confusion] = Field(max_length=10, description="the most frequent mistakes of the merged model")


class ReliabilityBin(Model):
    """Test images whose largest softmax probability lies in one of 15 equally wide bins."""

    images: Positive
    confidence: Share = Field(description="mean of the largest softmax probability")
    accuracy: Share = Field(description="share of correct predictions")


class ClassResults(Model):
    """The labelled test images of one task class by class, among the task's own labels."""

    labels: list[str] = Field(description="the classes, in the order of all lists")
    images: list[Count] = Field(description="test images of each class")
    correct: list[Count] = Field(description="of these, predicted correctly by the merged model")
    source_correct: list[Count] | None = Field(description="the same of the source; null where it was not run")
    confusion: list[list[Count]] | None = Field(
        description="images by true class (rows) and prediction of the merged model; null for more than 30 classes"
    )
    reliability: list[ReliabilityBin] = Field(description="of the merged model; bins without images are left out")
    source_reliability: list[ReliabilityBin] | None = Field(description="of the source; null where it was not run")


class TaskLabel(Model):
    """A class of one task."""

    task: str
    label: str


class JointConfusion(Model):
    """The merged model's joint predictions: those of `classifier`, or of `softmax` (the task is not given)."""

    classes: list[TaskLabel] = Field(description="the classes of all tasks, in the order of rows and columns")
    counts: list[list[Count]] = Field(description="images by true class (rows) and predicted class")
