"""Layouts of other programs: those that are read, and those that are refused with a sentence of their own."""

from tests.support.layouts.folders import FOLDERS
from tests.support.layouts.formats import FORMATS
from tests.support.layouts.pickles import PICKLES

REFUSED = {**PICKLES, **FORMATS, **FOLDERS}
