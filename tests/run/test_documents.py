"""One document, three writers: what each of them makes of the same parts."""

import json
import math

import numpy as np
import pytest

from flowmc.correlate.measurement import Entry, Section
from flowmc.estimators.autocorrelation import Estimate
from flowmc.estimators.history import Result
from flowmc.estimators.reweighting import WeightVerdict
from flowmc.reports import document as doc
from flowmc.reports.analysis.correlate_warnings import warnings_of
from flowmc.reports.as_html import as_html
from flowmc.reports.as_json import as_json, strict_json
from flowmc.reports.as_text import as_text
from flowmc.reports.pieces import filled, note, payoff_section, table
from flowmc.reports.plots.style import Drawing
from tests.run.page_numbers import numbers_not_in


def refuse():
    raise AssertionError("a figure is drawn for nobody")


def draw():
    return Drawing("<svg></svg>", "<svg></svg>")


def document(figure=refuse):
    rows = [
        (
            doc.Name("plaquette", "Plaquette <P>"),
            doc.Value(0.593842, 0.00123),
            doc.Value(12.3, 4.5, bound="lower"),
            doc.Value(1234),
            doc.Verdict(False, "not to be trusted", "!"),
        ),
        doc.Row(("t_{0}", doc.Value(math.nan, math.nan), None, None, ""), is_part=True),
        doc.Row(("of the page", doc.Value(0.5), None, None, ""), shown=doc.PAGE),
    ]
    header = (
        doc.Column("observable", short="name", kind="words"),
        "mean",
        doc.Column("tau_int", unit="updates"),
        "samples",
        doc.Column("verdict", short="", kind="words"),
    )
    parts = (
        note("Of the page.\n", doc.PAGE),
        doc.Paragraph(filled("{} of {} steps", doc.Value(3), doc.Value(1500.0, unit="s"))),
        table(header, rows),
        doc.Figure(figure, "a figure"),
        doc.Details("More", (doc.Code("m2 = 0.25 <"),)),
        doc.Section("Inside", (table(("name", "share"), [("x", doc.Value(0.25, form=".0%"))]),)),
    )
    return doc.Document(
        "A & B",
        "φ⁴ theory, m2 = -1.0",
        (("time", doc.Value(90.0, unit="s")),),
        (
            payoff_section(["it pays if tau_int >= 3: flowmc report A B"], ["train longer"]),
            doc.Section("results", parts, (doc.Value(2.5),)),
        ),
        "headline",
        ("tau_int is a bound",),
    )


def test_text():
    assert as_text(document()).splitlines() == [
        "headline",
        "",
        "! tau_int is a bound",
        "",
        "3 of 25 min steps",
        "name       mean        tau_int       samples",
        "plaquette  0.5938(12)  >= 12.3(4.5)  1234     !",
        "t_0        -           -             -",
        "",
        "name  share",
        "x     25%",
        "",
        "Does it pay?",
        "it pays if tau_int >= 3: flowmc report A B",
        "next: train longer",
    ]


def test_json_has_every_number_unrounded():
    page = as_json(document())
    assert strict_json(page)
    assert page["facts"] == {"time": {"value": 90.0, "unit": "s"}}
    pays, results = page["sections"]
    assert pays["parts"][1] == {"list": ["train longer"]}
    assert results["aside"] == [2.5]
    parts = [part for one in results["parts"] for part in one.items()]
    kinds = ["text", "text", "table", "figure", "details", "section"]
    assert [kind for kind, _ in parts] == kinds
    first, second, third = parts[2][1]["rows"]
    assert first == [
        {"name": "plaquette", "title": "Plaquette <P>"},
        {"value": 0.593842, "error": 0.00123},
        {"value": 12.3, "error": 4.5, "bound": "lower"},
        1234,
        False,
    ]
    assert second[:3] == ["t_0", {"value": None, "error": None}, None] and third[1] == 0.5
    assert parts[2][1]["columns"][2] == {"title": "tau_int", "unit": "updates"}
    assert parts[3][1] == "a figure"


def test_page_sets_signs_and_escapes():
    text = as_html(document(draw))
    for shown in (
        "<title>A &amp; B</title>",
        "<td>Plaquette &lt;P&gt;</td>",
        '<span class="bound">≥ 12.3(4.5)</span>',
        "<td>t<sub>0</sub></td>",
        '<th class="number">τ<sub>int</sub> (updates)</th>',
        'data-label="τint (updates)"',
        "<p>It pays if τ<sub>int</sub> ≥ 3: <code>flowmc report A B</code></p>",
        "<h2>Results<small>2.5</small></h2>",
        "<pre>m2 = 0.25 &lt;</pre>",
        "1,234",
        "<dd>90 s</dd>",
    ):
        assert shown in text, shown
    assert numbers_not_in(text, {"page": as_json(document())}) == []
    with pytest.raises(AssertionError, match="for nobody"):
        as_html(document())


@pytest.mark.parametrize(
    ("value", "text", "page"),
    [
        (doc.Value(None), "-", "–"),
        (doc.Value(1.0, math.nan), "1(?)", "1(?)"),
        (doc.Value(1.0, 0.0), "1 (constant)", "1 (constant)"),
        (doc.Value(2.5, 0.1, bound="unknown"), "~ 2.50(10)", "≈ 2.50(10)"),
        (doc.Value(2.5, 0.1, bound="upper"), "<= 2.50(10)", "≤ 2.50(10)"),
        (doc.Value(2.5, 0.1, error_is_bound=True), "2.50(10)!", "2.50(10)!"),
        (doc.Value(0.00321, unit="s"), "3.21 ms", "3.21 ms"),
        (doc.Value(7200.0, 600.0, unit="s"), "2.00(17) h", "2.00(17) h"),
        (doc.Value(0.12345, form=".1%"), "12.3%", "12.3%"),
        (doc.Value(3.0, 0.5, unit="MeV"), "3.00(50) MeV", "3.00(50) MeV"),
        (doc.Value(12345), "12345", "12,345"),
        (doc.Value(np.int64(12345)), "12345", "12,345"),
        (doc.Value(math.inf), "inf", "inf"),
    ],
)
def test_values(value, text, page):
    one = doc.Document("", "", (("x", value),), (doc.Section("", (doc.Paragraph((value,)),)),))
    assert as_text(one) == text
    shown = as_html(one)
    assert f">{page}</" in shown
    assert numbers_not_in(shown, {"page": json.loads(strict_json(as_json(one)))}) == []


def entry(name, tau_int, *warnings):
    estimate = Estimate(0.5, 0.1, tau_int, 0.1, 40, 3, warnings=warnings)
    return Entry(name, Result(name, estimate))


def few(tau_int):
    return f"40 measurements are fewer than 100 times what tau_int may be (tau_int = {tau_int})"


def test_a_kind_of_warning_is_said_once_with_all_quantities():
    vector = [entry(f"correlator[{t}]", 1.0, few(1.0)) for t in range(4)]
    loops = [entry(f"polyakov_loop[{k}]", 0.7 + k, few(0.7 + k)) for k in range(2)]
    poor = WeightVerdict(40, 0.1, 0.01, 0.5, 0.8, 1.0, ("a heavy tail",))
    one = Section("source", "the ensemble", [*vector, *loops, entry("action", 0.5)], {}, {}, ["x"])
    two = Section(
        "beta=2.1",
        "at beta=2.1",
        [entry("plaquette", 2.5, few(2.5), "weights: a heavy tail")],
        {"beta=2.1": poor},
    )
    about = "correlator, 4 components, Re polyakov_loop, Im polyakov_loop"
    assert warnings_of([one]) == ["x", f"{few(1.7)} [{about}]"]
    assert warnings_of([one, two]) == [
        "x",
        f"{few(2.5)} [source: {about}; beta=2.1: plaquette]",
        "a heavy tail [beta=2.1: weights at beta=2.1]",
    ]
    # A coupling is a name: two ensembles are two things to look at.
    names = [entry(f"S{b}", 1.0, f"beta={b}: {few(1.0)}") for b in (1.5, 2.5)]
    assert len(warnings_of([Section("combination", "", names)])) == 2
