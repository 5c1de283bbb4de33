"""How long trainings last, and how large their steps are, by default."""

from __future__ import annotations

from typing import Literal

Budget = Literal["fast", "default", "best"]

BUDGETS: dict[Budget, float] = {"fast": 0.25, "default": 1.0, "best": 4.0}
"""Factor of `method.steps` by budget."""

STEPS, STEPS_FROM_CLOSED_FORM = 2000, 500
"""What `method.steps` is where it is null."""

CLOSED_FORM_RATE = 0.3
"""Factor of the default learning rates after a start from the closed form; larger ones lose its solution first."""
