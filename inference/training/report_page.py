"""An evaluation as one HTML page that needs nothing beside it: plain CSS, pictures inline, no script."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from rayhook.inference.statement import INVESTIGATIONAL
from rayhook.inference.training.evaluation_report import EvaluationReport
from rayhook.inference.training.figure_text import (
    counted,
    heatmap_figures,
    interval,
    ordered,
    p_value,
    percent,
    shown,
    title,
)

SUBGROUP_FIGURES = ("auc", "sensitivity", "specificity", "ece")

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.model_id }} {{ r.model_version }} on {{ r.dataset }}, split {{ r.split }}</title>
<style>
:root { color: #1b2430; background: #fff; font: 15px/1.5 system-ui, "Segoe UI", Arial, sans-serif; }
body { max-width: 1100px; margin: 0 auto; padding: 20px 24px 48px; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.08rem; margin: 30px 0 8px; break-after: avoid; }
p { margin: 6px 0; max-width: 78ch; }
.muted { color: #55616f; }
.statement { padding: 10px 14px; margin: 14px 0; background: #fff6dc; border: 1px solid #ecd9a0; color: #4f3b00; max-width: none; }
.headline { display: flex; flex-wrap: wrap; gap: 12px; padding: 0; margin: 16px 0; list-style: none; }
.headline li { flex: 1 1 150px; padding: 10px 14px; border: 1px solid #dbe0e8; border-radius: 8px; }
.headline b { display: block; font-size: 1.5rem; font-weight: 650; line-height: 1.3; }
.headline span { display: block; color: #55616f; font-size: 0.86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #55616f; font-size: 0.9rem; padding-bottom: 4px; }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid #dbe0e8; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; }
th.wide, td.wide { white-space: normal; min-width: 14rem; }
tr { break-inside: avoid; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 18px; align-items: start; }
figure { margin: 0; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: #55616f; font-size: 0.88rem; margin-top: 4px; }
code { font: 0.86em ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; }
dt { color: #55616f; }
dd { margin: 0; }
@media (max-width: 560px) { .pictures { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; } }
@media print { :root { font-size: 10.5pt; } body { max-width: none; padding: 0; } .scroll { overflow: visible; } th, td { white-space: normal; padding-right: 10px; } .pictures { grid-template-columns: 1fr 1fr; } }
@page { margin: 15mm; }
</style>
</head>
<body>
<header>
<h1>{{ r.model_id }} {{ r.model_version }}: {{ r.label }}</h1>
<p class="muted">{{ r.dataset }}, split {{ r.split }}: {{ counted(r.count, r.unit) }} of {{ counted(r.patients, 'patient') }}, \
{{ r.positives }} with the finding ({{ percent(r.prevalence) }}). Status: {{ r.model_status }}.</p>
</header>
<p class="statement"><strong>{{ investigational }}</strong></p>
<ul class="headline">
{% for name in ("auc", "sensitivity", "specificity", "ece") if name in r.estimates %}
<li>{{ short[name] }}<b>{{ "%.3f" | format(r.estimates[name].value) }}</b>\
<span>{{ "%.3f" | format(r.estimates[name].low) }} to {{ "%.3f" | format(r.estimates[name].high) }}</span></li>
{% endfor %}
</ul>
<p class="muted">{{ r.resampling.method }} ({{ r.resampling.rounds }} rounds, seed {{ r.resampling.seed }}), \
here and below where nothing else is said.</p>

<h2>What these figures do not show</h2>
<ul>
{% for limit in r.limits %}
<li>{{ limit }}</li>
{% endfor %}
</ul>

<h2>Figures by {{ r.unit }}</h2>
<p>Threshold {{ "%.4f" | format(r.threshold.value) }}: {{ r.threshold.source }}</p>
<div class="scroll"><table>
<thead><tr><th>Figure</th><th>Value (95 % interval)</th></tr></thead>
<tbody>
{% for name, found in ordered(r.estimates) %}
<tr><td class="wide">{{ name }}</td><td>{{ interval(found) }}</td></tr>
{% endfor %}
</tbody></table></div>

{% for part in r.other_units %}
<h2>Figures by {{ part.unit }}</h2>
<p>n = {{ part.count }}, of {{ part.patients }} patients, {{ part.positives }} with the finding. {{ part.limits }}</p>
<div class="scroll"><table>
<thead><tr><th>Figure</th><th>Value (95 % interval)</th></tr></thead>
<tbody>
{% for name, found in ordered(part.estimates) %}
<tr><td class="wide">{{ name }}</td><td>{{ interval(found) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endfor %}

{% if r.prevalence_table %}
<h2>Predictive values at other prevalences</h2>
<div class="scroll"><table>
<caption>From sensitivity and specificity by Bayes' theorem; they hold if both are the same in that population.</caption>
<thead><tr><th>Prevalence</th><th>PPV</th><th>NPV</th></tr></thead>
<tbody>
{% for row in r.prevalence_table %}
<tr><td>{{ percent(row.prevalence) }}</td><td>{{ interval(row.ppv) }}</td><td>{{ interval(row.npv) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if r.baselines %}
<h2>Against trivial baselines</h2>
<div class="scroll"><table>
<caption>Two-sided tests of the difference in AUC on the same rows: by patient (Obuchowski 1997), and DeLong's, \
which takes the images of a patient as independent.</caption>
<thead><tr><th>Baseline</th><th>AUC of the baseline</th><th>Model minus baseline</th><th>p by patient</th><th>p, DeLong</th></tr></thead>
<tbody>
{% for other in r.baselines %}
<tr><td>{{ other.name }}</td><td>{{ interval(other.auc) }}</td><td>{{ interval(other.difference) }}</td>\
<td>{{ p_value(other.clustered_p) }}</td><td>{{ p_value(other.delong_p) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if r.subgroups %}
<h2>Subgroups</h2>
<div class="scroll"><table>
<thead><tr><th>Subgroup</th><th>Patients</th><th>Count</th><th>With finding</th>\
{% for name in subgroup_figures %}<th>{{ short[name] }}</th>{% endfor %}</tr></thead>
<tbody>
{% for part in r.subgroups %}
<tr><td>{{ part.name }} {{ part.value }}</td><td>{{ part.patients }}</td><td>{{ part.count }}</td><td>{{ part.positives }}</td>\
{% for text in shown(part.estimates, subgroup_figures) %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if r.reliability %}
<h2>Calibration</h2>
<div class="scroll"><table>
<caption>Bins of equal count. Wilson intervals, which take images as independent.</caption>
<thead><tr><th>Probabilities</th><th>Images</th><th>Mean probability</th><th>Share with the finding</th></tr></thead>
<tbody>
{% for bin in r.reliability %}
<tr><td>{{ "%.3f" | format(bin.low) }} to {{ "%.3f" | format(bin.high) }}</td><td>{{ bin.count }}</td>\
<td>{{ "%.3f" | format(bin.predicted) }}</td><td>{{ interval(bin.observed) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if r.selection %}
<h2>Not sure</h2>
<p>No answer from {{ "%.4f" | format(r.selection.low) }} to {{ "%.4f" | format(r.selection.high) }}. \
alpha_positive {{ r.selection.alpha_positive }}, alpha_negative {{ r.selection.alpha_negative }}. {{ r.selection.rule }}</p>
{% endif %}

{% if r.explanation %}
<h2>Heatmap</h2>
<div class="scroll"><table>
<caption>{{ r.explanation.count }} images with the finding and a reader's mask.</caption>
<tbody>
{% for words, found in heatmap_figures(r.explanation) %}
<tr><td class="wide">{{ words }}</td><td>{{ interval(found) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if pictures %}
<h2>Plots</h2>
<div class="pictures">
{% for picture in pictures %}
<figure{% if picture.wide %} class="wide"{% endif %}><img alt="{{ picture.caption }}" src="data:image/png;base64,{{ picture.base64 }}">\
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}

<h2>Digests and environment</h2>
<dl>
<dt>Weights, SHA-256</dt><dd><code>{{ r.weights_sha256 }}</code></dd>
<dt>labels.csv, SHA-256</dt><dd><code>{{ r.labels_sha256 }}</code></dd>
<dt>Processor</dt><dd>{{ r.environment.cpu }}</dd>
<dt>Python</dt><dd>{{ r.environment.python }}</dd>
{% for name, version in r.environment.libraries | dictsort %}
<dt>{{ name }}</dt><dd>{{ version }}</dd>
{% endfor %}
</dl>
</body>
</html>
"""

_SHORT = {name: title(name) for name in SUBGROUP_FIGURES} | {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ece": "Calibration error",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot of the page; wide ones take a row of their own."""

    caption: str
    png: bytes
    wide: bool = False

    @property
    def base64(self) -> str:
        """Return the image as base64 text."""
        return base64.b64encode(self.png).decode()


def render_page(report: EvaluationReport, pictures: Sequence[Picture] = ()) -> str:
    """Return the page of a report."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE).render(
        r=report,
        pictures=pictures,
        investigational=INVESTIGATIONAL,
        subgroup_figures=SUBGROUP_FIGURES,
        short=_SHORT,
        counted=counted,
        heatmap_figures=heatmap_figures,
        interval=interval,
        ordered=ordered,
        p_value=p_value,
        percent=percent,
        shown=shown,
    )
