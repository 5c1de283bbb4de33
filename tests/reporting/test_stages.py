from __future__ import annotations

from typing import Any

from fsmerge_cli.alignment.closed_form.solve import ClosedForm
from fsmerge_cli.methods.closed_form_solution import figures
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.reporting.stages import stages
from fsmerge_cli.reporting.summary import STAGE_FIGURE
from tests.methods.test_closed_form_start import pair, problem_of


def evaluation(facts: dict[str, float]) -> dict[str, Any]:
    return {"facts": facts, "provenance": {"sources": [{"name": "low"}, {"name": "high"}]}}


def facts_of(**by_layer: list[list[float]]) -> dict[str, float]:
    return figures(ClosedForm({}, (), {}, {}, by_layer))


def test_a_transformer_has_a_row_for_attention_and_mlp_of_every_block() -> None:
    facts = facts_of(
        read_error=[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]],
        stream_error=[[0.01], [0.02], [0.03], [0.04]],
        heads=[[4.0, 4.0], [5.0, 3.0]],
        units=[[10.0, 14.0], [12.0, 12.0]],
        logits_kept=[[0.91, 0.83], [0.99, 0.7]],
        ridge=[[1e-4, 1e-3, 1.0]] * 4,
        stream_kept=[[0.97]],
    )
    found = stages(evaluation(facts))
    assert found is not None
    assert found.columns == [
        "stage", "reading low", "reading high", "stream", "from low", "from high", "logits kept",
    ]  # fmt: skip
    assert found.rows == [
        ["1 attention", "0.1", "0.2", "0.01", "4", "4", "0.830"],
        ["1 MLP", "0.3", "0.4", "0.02", "10", "14", "-"],
        ["2 attention", "0.5", "0.6", "0.03", "5", "3", "0.700"],
        ["2 MLP", "0.7", "0.8", "0.04", "12", "12", "-"],
    ]
    assert facts["ridge_1_correction"] == 1.0
    assert [name for name in facts if not STAGE_FIGURE.fullmatch(name)] == ["stream_kept"]


def test_an_mlp_has_a_row_per_layer() -> None:
    found = stages(evaluation(facts_of(units=[[3.0, 4.0], [5.0, 2.0]], read_error=[[0.09, 0.03]], ridge=[[1e-3]])))
    assert found is not None
    assert found.columns == ["stage", "reading low", "reading high", "from low", "from high"]
    assert found.rows == [["layer 1", "-", "-", "3", "4"], ["layer 2", "0.09", "0.03", "5", "2"]]


def test_other_methods_have_no_stages() -> None:
    assert stages(evaluation({})) is None
    assert stages(evaluation({"condition_number": 3.0})) is None


def test_the_figures_of_a_real_run_have_their_rows() -> None:
    sources = pair("vit")
    method = FSClosedForm(views=0)
    found = stages(evaluation(dict(method.fit(problem_of(method, sources)).facts)))
    assert found is not None
    assert [row[0] for row in found.rows] == ["1 attention", "1 MLP", "2 attention", "2 MLP"]
    assert len(found.columns) == 7
    assert all(cell != "-" for row in found.rows for cell in row[:6])
