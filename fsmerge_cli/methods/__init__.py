"""The merging methods. To add one: one file (here or in a sub-room), one line in SHIPPED, one YAML.

Those of other packages come from the entry points `fsmerge.methods`, those of scripts from `fsmerge_cli.register`.
"""

from __future__ import annotations

from functools import partial

from fsmerge_cli.common import plugins
from fsmerge_cli.common.plugins import Registry, check_options
from fsmerge_cli.methods.activation_matching import ActivationMatching
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Method
from fsmerge_cli.methods.cca import CCA
from fsmerge_cli.methods.fisher import Fisher
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.fs_merge import FSMerge
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.methods.neuron_interpolation import NeuronInterpolation
from fsmerge_cli.methods.orthogonal_matching import OrthogonalMatching
from fsmerge_cli.methods.ot_fusion import OTFusion
from fsmerge_cli.methods.pleas import PLeaS
from fsmerge_cli.methods.regmean import RegMean
from fsmerge_cli.methods.regmean_pp import RegMeanPlusPlus
from fsmerge_cli.methods.slerp import Slerp
from fsmerge_cli.methods.straight_through import StraightThrough
from fsmerge_cli.methods.task_vectors.ada_merging import AdaMerging
from fsmerge_cli.methods.task_vectors.breadcrumbs import Breadcrumbs
from fsmerge_cli.methods.task_vectors.concrete import Concrete
from fsmerge_cli.methods.task_vectors.consensus import Consensus
from fsmerge_cli.methods.task_vectors.dare import Dare
from fsmerge_cli.methods.task_vectors.della import Della
from fsmerge_cli.methods.task_vectors.doge import Doge
from fsmerge_cli.methods.task_vectors.expert_merging import ExpertMerging
from fsmerge_cli.methods.task_vectors.fw_merging import FWMerging
from fsmerge_cli.methods.task_vectors.iso_c import IsoC
from fsmerge_cli.methods.task_vectors.lines import Lines
from fsmerge_cli.methods.task_vectors.magnitude import Magnitude
from fsmerge_cli.methods.task_vectors.model_stock import ModelStock
from fsmerge_cli.methods.task_vectors.opcm import OPCM
from fsmerge_cli.methods.task_vectors.pcb import PCB
from fsmerge_cli.methods.task_vectors.task_arithmetic import TaskArithmetic
from fsmerge_cli.methods.task_vectors.ties import Ties
from fsmerge_cli.methods.task_vectors.tsv import TSV
from fsmerge_cli.methods.task_vectors.widen import Widen
from fsmerge_cli.methods.task_vectors.wudi import Wudi
from fsmerge_cli.methods.weight_matching import WeightMatching
from fsmerge_cli.methods.zipit import ZipIt
from fsmerge_cli.training.problem import Problem, Solution

SHIPPED: dict[str, type[Method]] = {
    "activation_matching": ActivationMatching,
    "weight_matching": WeightMatching,
    "ada_merging": AdaMerging,
    "average": Average,
    "breadcrumbs": Breadcrumbs,
    "cca": CCA,
    "concrete": Concrete,
    "consensus": Consensus,
    "dare": Dare,
    "della": Della,
    "doge": Doge,
    "expert_merging": ExpertMerging,
    "fisher": Fisher,
    "fs_closed_form": FSClosedForm,
    "fs_merge": FSMerge,
    "fw_merging": FWMerging,
    "iso_c": IsoC,
    "kd": Distillation,
    "lines": Lines,
    "magnitude": Magnitude,
    "model_stock": ModelStock,
    "neuron_interpolation": NeuronInterpolation,
    "opcm": OPCM,
    "orthogonal_matching": OrthogonalMatching,
    "ot_fusion": OTFusion,
    "pcb": PCB,
    "pleas": PLeaS,
    "regmean": RegMean,
    "regmean_pp": RegMeanPlusPlus,
    "slerp": Slerp,
    "straight_through": StraightThrough,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "tsv": TSV,
    "widen": Widen,
    "wudi": Wudi,
    "zipit": ZipIt,
}

METHODS: Registry[type[Method]] = Registry(plugins.METHODS, SHIPPED, partial(check_options, Method))

__all__ = ["METHODS", "Method", "Problem", "Solution"]
