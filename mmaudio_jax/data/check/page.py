"""A report as one HTML page that needs nothing else: no script, no file beside it, no network."""

import base64
import html
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from string import Template

from mmaudio_jax.data.check.findings import BINS, Channels, Check, Distribution, Report, Verdict, largest

MOST_LETTERS = 28  # of the name of a share
INK = "#3b528b"
PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$path</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2230; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; margin-bottom: .1em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3em .6em; border-bottom: 1px solid #e3e6ee; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
ul { margin: 0; padding-left: 1.1em; } li { overflow-wrap: anywhere; }
.verdict { display: inline-block; min-width: 4.6em; text-align: center; border-radius: 4px; font-size: .85em; }
.ok { background: #dcefe0; color: #17602c; } .warning { background: #fdeec2; color: #7a5200; }
.fault { background: #f8d4d2; color: #98150f; } .left { background: #eceef3; color: #5b6275; }
.facts td:first-child { width: 14em; color: #5b6275; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1em; }
.figures img { width: 100%; }
</style>
</head>
<body>
<h1>$path</h1>
<p>$summary</p>
<table class="facts">
$facts
</table>
<h2>Checks</h2>
<table>
<tr><th></th><th>check</th><th>found</th><th>where</th></tr>
$checks
</table>
<h2>How the data lie</h2>
<div class="figures">
$figures
</div>
</body>
</html>
""")

ORDER = (Verdict.FAULT, Verdict.WARNING, Verdict.OK, Verdict.LEFT_OUT)


def render(report: Report) -> str:
    """The page; faults come first, then warnings."""
    facts = (
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(fact)}</td></tr>" for name, fact in report.facts.items()
    )
    checks = sorted(report.checks, key=lambda check: ORDER.index(check.verdict))
    return PAGE.substitute(
        path=html.escape(report.path),
        summary=html.escape(report.summary),
        facts="\n".join(facts),
        checks="\n".join(map(_row, checks)),
        figures="\n".join(_figures(report)),
    )


def _row(check: Check) -> str:
    listed = [html.escape(str(place)) for place in check.places]
    if check.count > len(listed):
        listed.append(f"and {check.count - len(listed)} more")
    where = f"<ul>{''.join(f'<li>{place}</li>' for place in listed)}</ul>" if listed else ""
    verdict = f'<span class="verdict {check.verdict}">{check.verdict}</span>'  # "left out" is of the class left
    return (
        f"<tr><td>{verdict}</td><td>{html.escape(check.name)}</td>"
        f'<td class="number">{html.escape(check.number)}</td><td>{where}</td></tr>'
    )


def _figures(report: Report) -> Iterator[str]:
    for what, share in report.shares.items():
        yield _image(what, lambda axis, share=share: _draw_shares(axis, share))
    for distribution in report.distributions:
        yield _image(distribution.title, lambda axis, each=distribution: _draw_distribution(axis, each))
    if report.channels:
        yield _image("latent channels", lambda axis: _draw_channels(axis, report.channels))


def _image(title: str, draw: Callable) -> str:
    """A drawing as a PNG within the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), dpi=130, layout="constrained")
    axis = figure.subplots()
    draw(axis)
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # captions have characters that the font has not
        FigureCanvasAgg(figure).print_png(file)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}">'


def _draw_shares(axis, share: Mapping[str, int]) -> None:
    names, counts = zip(*largest(share), strict=True)
    short = [name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…" for name in names]
    axis.barh(range(len(names)), counts, color=INK)
    # a dollar would begin a formula
    axis.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in short], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("examples" if len(share) == len(names) else f"examples; the largest {len(names)} of {len(share)}")


def _draw_distribution(axis, distribution: Distribution) -> None:
    axis.hist(distribution.values, BINS, color=INK)
    axis.set(xlabel=distribution.unit, ylabel="number")


def _draw_channels(axis, channels: Channels) -> None:
    numbers = range(len(channels.mean))
    axis.errorbar(numbers, channels.mean, channels.std, fmt="o", markersize=3, color=INK, label="this set")
    if channels.released_mean is not None:
        shifted = [number + 0.3 for number in numbers]
        released = channels.released_mean, channels.released_std
        axis.errorbar(shifted, *released, fmt="o", markersize=3, color="#d1495b", label="released model")
        axis.legend(frameon=False, fontsize=8)
    axis.set(xlabel="channel", ylabel="mean ± standard deviation")
