"""All known bad inputs and the message of the command for each."""

from tests.support.bad_inputs.architectures import MISMATCHES
from tests.support.bad_inputs.case import KD, VITS, Case, write_sources
from tests.support.bad_inputs.configs import CONFIGS
from tests.support.bad_inputs.headers import HEADERS
from tests.support.bad_inputs.heads import HEADS, HEADS_OF_CHECKPOINTS
from tests.support.bad_inputs.images import IMAGES
from tests.support.bad_inputs.options import OPTIONS
from tests.support.bad_inputs.paths import PATHS
from tests.support.bad_inputs.pickles import PICKLES
from tests.support.bad_inputs.sources import SOURCES
from tests.support.bad_inputs.tensors import SHAPES, TENSORS

CASES = [
    *(*HEADERS, *TENSORS, *SHAPES, *HEADS, *HEADS_OF_CHECKPOINTS, *PICKLES, *MISMATCHES, *CONFIGS, *PATHS),
    *(*OPTIONS, *SOURCES, *IMAGES),
]

__all__ = ["CASES", "KD", "VITS", "Case", "write_sources"]
