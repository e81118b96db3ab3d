"""A report of an explanation: one HTML file that needs no network, and that prints well.

All text from a service, a model or a caller is escaped, and a policy in the file forbids scripts and requests. The
images are embedded once; sets of patches are drawn from them by clipping.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image

from sagittal.client.drawing.salient_part import salient_part
from sagittal.client.events import ConceptContribution, Mask, SufficientSet
from sagittal.client.explained_image import JobImage
from sagittal.client.explanation import Explanation
from sagittal.client.html import CURVE_COLOURS, curves_svg, escape, percent
from sagittal.client.patch_drawing import SIDE, PatchDrawing, graph_svg, jpeg_data, sets_by_name
from sagittal.imaging.overlays import HEAT, SIGNED, heatmap, to_image
from sagittal.imaging.view import Picture, View, view_of
from sagittal.v1 import tensor_pb2

#: Images of a job that a report shows, by their kind.
IMAGES = ("original", "model-input", "baseline")

#: Steps of a legend.
_STEPS = 9

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light; --faint: #59636e; --rule: #d0d7de; --good: #1a7f37; --bad: #b42318; --warn: #7a4f00; }
* { box-sizing: border-box; }
body { font: 14px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 0 auto; padding: 24px; max-width: 1060px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 28px 0 8px; border-bottom: 1px solid var(--rule); padding-bottom: 4px; break-after: avoid; }
p { margin: 6px 0; }
.faint, figcaption { color: var(--faint); }
.warn { color: var(--warn); background: #fff7e0; border-radius: 6px; padding: 6px 10px; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 16px; }
figure { margin: 0; break-inside: avoid; }
figure > img, figure > svg { width: 100%; height: auto; aspect-ratio: 1; display: block; border-radius: 4px; }
figcaption { font-size: 13px; margin-top: 4px; overflow-wrap: anywhere; }
figcaption b { color: #1f2328; }
.curves { display: flex; flex-wrap: wrap; gap: 24px; align-items: center; break-inside: avoid; }
table { border-collapse: collapse; }
th, td { text-align: left; font-weight: 400; padding: 3px 18px 3px 0; vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--faint); }
tr { break-inside: avoid; }
.legend { height: 10px; border-radius: 3px; }
.ends { display: flex; justify-content: space-between; font-size: 12px; }
.scroll { overflow-x: auto; }
.graph { width: 100%; height: auto; min-width: 560px; }
.graph text { font: 13px system-ui, sans-serif; }
pre { background: #f6f8fa; padding: 10px 12px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; break-inside: avoid; }
@media print { body { padding: 0; max-width: none; font-size: 11px; } .scroll { overflow: visible; } .graph { min-width: 0; } }
@page { margin: 14mm; }
"""  # noqa: E501


def report_html(explanation: Explanation, seen: View | None = None, *, image_digest: str = "") -> str:
    """Returns a whole HTML document.

    Args:
        explanation: The explanation, ended or not.
        seen: What the model saw, and the baseline; None if the image is no longer known.
        image_digest: SHA-256 of the image as it was sent, in hexadecimal; empty if it is unknown.
    """
    drawing = PatchDrawing(seen, sets_by_name(explanation))
    title = escape(_title(explanation))
    parts = [
        drawing.definitions(),
        f"<header><h1>{title}</h1>{faint_line(_facts(explanation))}</header>",
        *(f'<p class="warn">{escape(each)}</p>' for each in _notes(explanation, seen)),
        section("Image and heatmap", f'<div class="grid">{"".join(_pictures(explanation, seen))}</div>'),
        section("Curves", _curves(explanation)),
        section("Stability", _stability(explanation)),
        section("Sufficient sets", _sets(explanation, drawing)),
        section("Attention graph", _graph(explanation, drawing)),
        section("Concepts", _concepts(explanation, seen)),
        section("Most probable classes", facts_table(_classes(explanation))),
        section("How it was made", facts_table(_origin(explanation, image_digest))),
        section("Parameters", facts_table((name, _value(value)) for name, value in explanation.parameters.items())),
        section("How to reproduce it", _reproduction(explanation)),
    ]
    return report_page(title, parts)


def report_page(title: str, parts: Iterable[str]) -> str:
    """Returns a whole HTML document, which needs no network and prints well, from its escaped title and its parts."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{"".join(parts)}</main></body></html>\n'


def report_of_job(explanation: Explanation, images: Mapping[str, JobImage]) -> str:
    """Returns a report of a stored job, drawn from those of its `IMAGES` that the service still has."""
    original, picture, baseline = (images.get(kind) for kind in IMAGES)
    seen = None
    if picture is not None and explanation.prediction is not None:
        shown = np.asarray(picture.pixels / 255, np.float32)
        prediction = explanation.prediction
        seen = view_of(shown, prediction.baseline, prediction.blur_sigma)
        if baseline is not None:
            seen = View(shown, np.asarray(baseline.pixels / 255, np.float32), baseline.exact)
    return report_html(explanation, seen, image_digest=digest_of(original.source) if original else "")


def digest_of(image: tensor_pb2.Image) -> str:
    """Returns the SHA-256 of an image file in hexadecimal; empty for an image that was sent as an array."""
    return hashlib.sha256(image.encoded).hexdigest() if image.encoded else ""


def _title(explanation: Explanation) -> str:
    target = explanation.target
    if target is None:
        return f"Job {explanation.job_id}: {explanation.state}"
    return f"Why {target.label or f'class {target.index}'}? {percent(target.score)}"


def _facts(explanation: Explanation) -> Iterator[str]:
    yield f"{explanation.model}@{explanation.model_version}".rstrip("@")
    yield explanation.method
    if explanation.evaluations:
        yield f"{explanation.evaluations:,} model evaluations"
    if explanation.seconds is not None:
        yield f"{explanation.seconds:.1f} s"
    if explanation.state != "completed":
        yield explanation.state


def _notes(explanation: Explanation, seen: View | None) -> Iterator[str]:
    if explanation.error is not None:
        yield f"The job {explanation.state}: {explanation.error}"
    for each in explanation.warnings:
        yield f"{each.message} ({each.reason})"
    completed = explanation.completed
    if completed is not None and completed.truncated:
        yield f"The search was ended by its budget of {completed.truncated_by}: this is the best result so far."
    if seen is None:
        yield "The image is no longer kept, so this report shows only where the explanation lies."
    elif not seen.exact:
        yield "The baseline shown is like the job's, but not the same."
    if explanation.masks and not any(np.abs(mask.saliency).max() > 0 for mask in explanation.masks):
        yield "The heatmap is empty: no part of the image was found to matter for this class."


def _pictures(explanation: Explanation, seen: View | None) -> Iterator[str]:
    if seen is not None:
        yield figure(picture_tag(seen.picture, "what the model saw"), "What the model saw", explanation.score)
    for number, mask in enumerate(explanation.masks):
        name = "Heatmap" if len(explanation.masks) == 1 else f"Heatmap {number + 1}"
        shown = seen.painted(mask.saliency) if seen else _enlarged(heatmap(mask.saliency, mask.signed))
        peak = float(np.abs(mask.saliency).max())
        size = f"{mask.saliency.shape[0]} x {mask.saliency.shape[1]} cells, peak {peak:.2f}"
        yield figure(picture_tag(shown, name), name, None, size, legend=_legend(mask))
    part = _part(explanation, seen)
    if part is not None and seen is not None:
        share = f"{part.share:.0%} of the area"
        yield figure(picture_tag(seen.keep(part.mask), "only this part"), "Only this part", part.alone, share)
        yield figure(picture_tag(seen.keep(1 - part.mask), "without it"), "Without it", part.without, share)


def _part(explanation: Explanation, seen: View | None) -> Any:
    if seen is None or not explanation.masks:
        return None
    mask = explanation.masks[0]
    curves = [curve for curve in explanation.curves if curve.mask_index == mask.index]
    return salient_part(mask.saliency, curves, seen.size)


def _curves(explanation: Explanation) -> str:
    curves = [curve for curve in explanation.curves if curve.mask_index == 0]
    if not curves:
        return ""
    rows = [
        (
            f'<span style="color:{CURVE_COLOURS.get(each.kind, "inherit")}">{escape(each.kind)}</span>',
            f"{each.auc:.3f}",
            f"{each.auc / explanation.score:.2f}" if explanation.score else "",
        )
        for each in curves
    ]
    figures = "".join(_row(*row) for row in rows)
    head = '<tr><th scope="col">area under</th><th scope="col">raw</th><th scope="col">of the unmasked score</th></tr>'
    scores = [("unmasked score", explanation.score), ("score on the baseline", explanation.baseline_score)]
    more = "".join(_row(name, percent(score), "") for name, score in scores if score is not None)
    return f'<div class="curves">{curves_svg(curves, 420, 260)}<table>{head}{figures}{more}</table></div>'


def _row(name: str, *cells: str) -> str:
    """Returns a row of a table from a name and cells that are HTML."""
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{each}</td>" for each in cells)}</tr>'


def _stability(explanation: Explanation) -> str:
    return "" if explanation.stability is None else f"<p>{escape(explanation.stability.text)}</p>"


def _sets(explanation: Explanation, drawing: PatchDrawing) -> str:
    ordered = sorted(explanation.sufficient_sets, key=lambda each: (not each.diverse, len(each.patches.patches)))
    figures = "".join(_set(number, each, drawing) for number, each in enumerate(ordered, start=1))
    return f'<div class="grid">{figures}</div>' if figures else ""


def _set(number: int, each: SufficientSet, drawing: PatchDrawing) -> str:
    count, certificate = len(each.patches.patches), each.certificate
    name = f"Set {number}: {count} patch{'es' if count != 1 else ''}"
    lines = []
    if each.causal is not None:
        after = each.causal.top_without
        lines.append(f"{percent(each.causal.without)} without it: {after.label or f'class {after.index}'}")
    required = percent(certificate.required_score)
    lines.append(f"{certificate.level}: {certificate.checked:,} sets scored, {required} required")
    if certificate.model_digest:
        lines.append(f"on model {certificate.model_digest[:16]}")
    if certificate.robust is not None:
        lines += certificate.robust.text.split("; ")
    if not each.diverse:
        lines.append("overlaps more than allowed with a better set")
    return figure(drawing.set(each.patches, name), name, each.score, *lines)


def _graph(explanation: Explanation, drawing: PatchDrawing) -> str:
    if explanation.graph is None:
        return ""
    note = "Each image at the top is one sufficient set. Each line removes one patch; the number is its probability."
    picture = graph_svg(explanation.graph, drawing)
    scrolled = f'<div class="scroll" tabindex="0" role="group" aria-label="attention graph">{picture}</div>'
    return f'<p class="faint">{note}</p>{scrolled}'


def _concepts(explanation: Explanation, seen: View | None) -> str:
    ordered = sorted(explanation.concepts, key=lambda each: -abs(each.contribution))
    figures = "".join(_concept(each, seen) for each in ordered)
    said = explanation.concept_prediction
    total = ""
    if said is not None:
        text = f"The concepts add up to {said.predicted:+.3g}; the model itself gives {said.output:+.3g}."
        total = f'<p class="faint">{text}</p>'
    return f'<div class="grid">{figures}</div>{total}' if figures else ""


def _concept(each: ConceptContribution, seen: View | None) -> str:
    name = f"x{each.index + 1} {each.name}".strip()
    picture = ""
    if each.heatmap is not None:
        picture = picture_tag(seen.painted(each.heatmap) if seen else _enlarged(heatmap(each.heatmap)), name)
    return figure(picture, name, None, f"contribution {each.contribution:+.3g}, value {each.value:+.3g}")


def _classes(explanation: Explanation) -> Iterator[tuple[str, str]]:
    for each in explanation.prediction.top if explanation.prediction else ():
        yield each.label or f"class {each.index}", percent(each.score)


def _origin(explanation: Explanation, image_digest: str) -> Iterator[tuple[str, str]]:
    completed, prediction = explanation.completed, explanation.prediction
    yield "model", f"{explanation.model}@{explanation.model_version}".rstrip("@")
    yield "digest of the model", explanation.model_digest
    yield "image, SHA-256 as sent", image_digest
    yield "method", explanation.method
    if prediction is not None:
        yield "class", f"{prediction.target.index} {prediction.target.label}".strip()
        strength = f", {prediction.blur_sigma:.3g} pixels" if prediction.blur_sigma else ""
        yield "baseline", f"{prediction.baseline}{strength}"
    if completed is not None:
        yield "seed", str(completed.seed)
        gradient, curves = f"{completed.gradient_evaluations:,}", f"{completed.metric_evaluations:,}"
        yield "model evaluations", f"{completed.evaluations:,}: {gradient} with gradient, {curves} for the curves"
        yield "time", f"{completed.run_seconds:.2f} s, after {completed.wait_seconds:.2f} s of waiting"
        yield "ended", f"{completed.time:%Y-%m-%d %H:%M:%S} UTC"
        yield "versions", ", ".join(f"{name} {version}" for name, version in completed.versions.items())
    yield "job", explanation.job_id


def _reproduction(explanation: Explanation) -> str:
    if explanation.completed is None or explanation.prediction is None:
        return ""
    note = (
        "With the same image, model digest, parameters and seed, the same machine gives the same result; another "
        "processor or another version gives nearly the same. IMAGE is the file with the SHA-256 above."
    )
    if explanation.completed.truncated:
        note += " This search was ended early: repeat it with the budget that it had."
    blocks = "".join(f"<pre>{escape(text)}</pre>" for text in (_command(explanation), _program(explanation)))
    return f'<p class="faint">{note}</p>{blocks}'


def _command(explanation: Explanation) -> str:
    settings = {name: value for name, value in explanation.parameters.items() if isinstance(value, str | int | float)}
    words = ["sagittal", "explain", "IMAGE"]
    for option, value in _asked(explanation).items():
        words += [f"--{option}", value]
    for name, setting in settings.items():
        words += ["--set", f"{name}={_value(setting)}"]
    if _is_robust(explanation):
        words.append("--robust")
    return shlex.join([*words, "--cache", "bypass"])


def _program(explanation: Explanation) -> str:
    asked, prediction = _asked(explanation), explanation.prediction
    kind = prediction.baseline if prediction else ""
    baseline = f'Baseline(kind="image", image={_BASELINE_FILE!r})' if kind == "image" else f"Baseline(kind={kind!r})"
    if prediction is not None and prediction.blur_sigma:
        baseline = f"Baseline(kind={kind!r}, blur_sigma={prediction.blur_sigma!r})"
    lines = [
        "from sagittal.client import Baseline, Client, Method, Metrics, RobustnessTest",
        "",
        "with Client() as client:",
        "    explanation = client.explain(",
        '        "IMAGE",',
        f"        model={asked['model']!r},",
        f"        method=Method({asked['method']!r}, **{dict(explanation.parameters)!r}),",
        f"        target={asked['target']},",
        *([f"        baseline={baseline},"] if kind else []),
        f"        seed={asked['seed']},",
        f"        metrics=Metrics({_metrics(explanation, asked)}),",
        '        cache="bypass",',
        "    )",
    ]
    return "\n".join(lines)


def _metrics(explanation: Explanation, asked: Mapping[str, str]) -> str:
    """Returns the arguments of `Metrics` that differ from their defaults."""
    found = [f"protocol={asked['curves']!r}"] if "curves" in asked else []
    found += [f"stability={asked['stability']}"] if "stability" in asked else []
    found += ["robustness=RobustnessTest()"] if _is_robust(explanation) else []
    return ", ".join(found)


def _is_robust(explanation: Explanation) -> bool:
    """Returns whether certificates were tested on drawn backgrounds."""
    tests = (each.certificate.robust for each in explanation.sufficient_sets)
    return any(test is not None and test.sufficient.draws for test in tests)


#: Stands for the file of a given baseline.
_BASELINE_FILE = "BASELINE"


def _asked(explanation: Explanation) -> Mapping[str, str]:
    """Returns the options of the command that asks the same again."""
    target, prediction = explanation.target, explanation.prediction
    kind = prediction.baseline if prediction else ""
    asked = {
        "model": f"{explanation.model}@{explanation.model_version}".rstrip("@"),
        "method": explanation.method,
        "target": str(target.index if target else ""),
        "seed": str(explanation.seed or 0),
    }
    if kind:
        asked["baseline"] = _BASELINE_FILE if kind == "image" else kind
    seen = prediction.preprocessing if prediction else None
    # curves at the resolution of pixels have a step for each row of pixels
    if seen is not None and any(len(curve.fractions) == seen.input_size + 1 for curve in explanation.curves):
        asked["curves"] = "pixel"
    if explanation.stability is not None:
        asked["stability"] = str(explanation.stability.runs - 1)
    return asked


def section(title: str, content: str) -> str:
    """Returns a section of HTML content; nothing if it has none."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def faint_line(parts: Iterable[str]) -> str:
    """Returns a line of texts, separated by dots."""
    return f'<p class="faint">{escape(" · ".join(filter(None, parts)))}</p>'


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Returns rows of a name and a value; rows without a value are omitted."""
    text = "".join(_row(escape(name), escape(value)) for name, value in rows if value)
    return f"<table>{text}</table>" if text else ""


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def figure(picture: str, name: str, score: float | None, *lines: str, legend: str = "") -> str:
    """Returns a figure from the HTML of its picture, with name, score and lines of text below it."""
    shown = f" <b>{percent(score)}</b>" if score is not None else ""
    text = "".join(f"<br>{escape(line)}" for line in lines)
    return f"<figure>{picture}{legend}<figcaption>{escape(name)}{shown}{text}</figcaption></figure>"


def _legend(mask: Mask) -> str:
    colours = SIGNED if mask.signed else HEAT
    steps = [colours[place] for place in np.linspace(0, len(colours) - 1, _STEPS).astype(int)]
    stops = ", ".join(f"#{''.join(f'{round(255 * float(part)):02x}' for part in each)}" for each in steps)
    low = "-1" if mask.signed else "0"
    bar = f'<div class="legend" style="background:linear-gradient(to right, {stops})"></div>'
    return f'{bar}<div class="faint ends"><span>{low}</span><span>1</span></div>'


def picture_tag(picture: Picture, label: str) -> str:
    """Returns an embedded image."""
    return f'<img alt="{escape(label)}" src="{jpeg_data(picture)}">'


def _enlarged(picture: Picture) -> Picture:
    image = to_image(picture).resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST)
    return np.asarray(np.asarray(image) / 255, np.float32)
