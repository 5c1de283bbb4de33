"""A student whose outputs are its features and patch tokens, with a token projector per source that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.token_outputs import TokenLayout, on_grid
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.supernet.student import Student

TokenProjector = tuple[Tensor, Tensor]
"""Weight [d_i, d'] and bias [d_i]."""


class TokenReader(Student):
    """A student with token projectors.

    student: its outputs are those of `with_tokens`, of this layout. sources: the layout of every source whose
    tokens count, by number; projectors: of these sources, the initial values.
    """

    def __init__(
        self,
        student: Student,
        layout: TokenLayout,
        sources: Mapping[int, TokenLayout],
        projectors: Mapping[int, TokenProjector],
    ) -> None:
        super().__init__()
        self.student, self.layout, self.sources = student, layout, sources
        self.projectors = nn.ModuleDict({str(i): _linear(*own) for i, own in projectors.items()})

    def matrices(self) -> list[nn.Parameter]:
        """Those of the student."""
        return self.student.matrices()

    def forward(self, images: Inputs) -> Tensor:
        """Features and tokens, [n, layout.size]."""
        outputs: Tensor = self.student(images)
        return outputs

    def project(self, features: Tensor, source: int) -> Tensor:
        """The estimate of the pooled features of one source, from the outputs."""
        return self.student.project(self.layout.features(features), source)

    def project_tokens(self, features: Tensor, source: int) -> Tensor:
        """The estimate of the tokens of one source on its own grid, [n, T_i, d_i], from the outputs."""
        projected = self.projectors[str(source)](self.layout.tokens(features))
        return on_grid(projected, self.layout.grid, self.sources[source].grid)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0])
    state: dict[str, Any] = {"weight": weight.detach().clone(), "bias": bias.detach().clone()}
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(True)
