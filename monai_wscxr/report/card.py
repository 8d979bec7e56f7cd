"""Model card: what a trained model was made from, how it is calibrated, what it reaches and where it ends, as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.report.figures import OPERATING_POINTS, figure_text

PRIVATE_SETTINGS = ("dataset_dir",)
"""Settings of a run that name folders of the machine it ran on; neither a card nor a bundle holds them."""

_FIGURES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
_PIXEL_FIGURES = {"auroc": "pixel AUROC", "aupro": "AUPRO", "pointing_game": "pointing game"}


def read_metrics(model: TrainedModel) -> dict[str, Any] | None:
    """Read `metrics.json` beside a model; None where the model was not evaluated, or another one was, or it was adapted since.

    Raises:
        InputError: when the file is damaged.
    """
    path = model.folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        now = model.sha256, model.calibration.threshold
        return dict(metrics) if (metrics["model_sha256"], metrics["honest"]["threshold"]) == now else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); evaluate the model again") from error


def model_card(
    model: TrainedModel,
    metrics: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    data_licence: str = "",
) -> str:
    """Write the card of a trained model.

    It holds counts, settings and figures, and no file name, folder or patient.

    Args:
        model: the trained model.
        metrics: content of `metrics.json` of this model; None leaves the figures out.
        defaults: defaults of the options, to mark settings that differ; None marks none.
        data_licence: terms of the training images, in words; "" says that none were stated.
    """
    sections = [
        _head(model),
        _use(),
        _training(model),
        _calibration(model),
        _figures(metrics),
        _limits(),
        _settings(model, defaults),
        _licence(data_licence),
    ]
    return "\n\n".join(sections) + "\n"


def counts_alone(findings: Sequence[str]) -> list[str]:
    """Return the findings about shared images and patients without the file names that they give as examples."""
    return [finding.partition(":")[0] for finding in findings]


def _head(model: TrainedModel) -> str:
    features = model.network.features
    parameters = sum(p.numel() for p in model.network.parameters())
    size = model.preprocessing.image_size
    discriminator = "one linear layer" if model.settings.get("depth", 1) == 1 else f"{model.settings['depth']} layers"
    return "\n".join(
        [
            "# WSCXR chest X-ray anomaly detection: model card",
            "",
            "Finds abnormal chest radiographs and shows where. Trained on many normal images and a few abnormal ones that "
            "carry only an image-level label. **For research use only. Not a medical device; not for diagnosis.**",
            "",
            "| | |",
            "|---|---|",
            f"| weights (SHA-256) | `{model.sha256}` |",
            f"| backbone, frozen | `{features.backbone.name}`, layers {', '.join(features.backbone.layers)} |",
            f"| patch features | {features.channels} channels, neighbourhood {features.neighbourhood} |",
            f"| discriminator | {discriminator} |",
            f"| parameters | {parameters:,} |",
            f"| input | {size} x {size} pixels, one channel, air dark; intensity `{model.preprocessing.intensity}` |",
            "| output | anomaly score (higher is more abnormal), calibrated p-value, decision, anomaly map |",
        ]
    )


def _use() -> str:
    return "\n".join(
        [
            "## Intended use",
            "",
            "Research on frontal chest radiographs like those of the training: ranking images for review, studying weak "
            "supervision. Not for diagnosis, triage of patients, lateral views, other body parts, or another population than "
            "that of the training without a new calibration.",
        ]
    )


def _training(model: TrainedModel) -> str:
    record = model.training
    classes = record.get("abnormal_images") or {}
    rejected = Counter(code for code, _ in record.get("rejected") or [])
    lines = ["## Trained on", "", "| images | |", "|---|---|"]
    lines.append(f"| normal | {record.get('normal_images', 'not recorded')} |")
    lines.append(f"| normal, held out for calibration | {record.get('held_out_images', 'not recorded')} |")
    lines += [f"| abnormal: {_cell(name)} | {count} |" for name, count in sorted(classes.items())]
    if not classes:
        lines.append("| abnormal | none recorded |")
    lines += [f"| rejected: {_cell(code)} | {count} |" for code, count in sorted(rejected.items())]
    if "mined_patches" in record:
        lines += ["", f"{record['mined_patches']:,} patches were mined from the abnormal images."]
    if model.site is not None:
        site = model.site
        lines += ["", f"Adapted to another site with {site['images']} of its images ({site['rejected']} rejected)."]
    for finding in counts_alone(record.get("overlap") or []):
        lines += ["", f"Training and test were allowed to overlap: {_cell(finding)}."]
    return "\n".join(lines)


def _calibration(model: TrainedModel) -> str:
    calibration = model.calibration
    n = len(calibration.normal_scores)
    check = "measured; `predict` refuses what is unlike a chest radiograph" if model.chest_check else "not measured"
    if calibration.basis == "site_unlabelled":
        promise = "The scores of normal images were estimated from unlabelled ones, so this holds approximately."
    else:
        promise = (
            "If a normal image is exchangeable with these, the probability that its p-value is at most a is at most a. This "
            "promise ends where scanner, projection, age or population differ."
        )
    return "\n".join(
        [
            "## Calibration",
            "",
            f"An image is flagged when its score exceeds {calibration.threshold:.4f}: {calibration.rate_text}.",
            "",
            f"The p-value of an image is (1 + number of {n} {calibration.images_text} that score at least as high) / {n + 1}; "
            f"the smallest is {1 / (n + 1):.3g}. {promise}",
            "",
            f"Check of the input: {check}.",
        ]
    )


def _figures(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "## Figures\n\nThis model has not been evaluated on test images."
    honest, paper, pixel = metrics["honest"], metrics["paper"], metrics.get("pixel")
    lines = [
        "## Figures",
        "",
        f"On {metrics['n_normal']} normal and {metrics['n_abnormal']} abnormal test images. Honest: nothing was chosen on "
        "them. Published rules: epoch and threshold were chosen on them, which is optimistic.",
        "",
        "| | honest | published rules |",
        "|---|---|---|",
    ]
    lines += [f"| {text} | {honest[key]:.3f} | {paper[key]:.3f} |" for key, text in _FIGURES.items()]
    points = metrics.get("operating_points")
    if points:
        lines += [
            "",
            "| operating point | sensitivity | specificity | threshold |",
            "|---|---|---|---|",
            *(_operating_point(name, points[key]) for key, name, _ in OPERATING_POINTS),
            "",
            f"AUROC {figure_text(points['auroc'])}; in brackets 95 % intervals over {points['patients']} patients. The "
            "thresholds for 90 and 95 % specificity were read off these test images. * Rests on few normal images.",
        ]
    if pixel is not None:
        lines += ["", "| localisation, against lesion masks | |", "|---|---|"]
        lines += [f"| {text} | {pixel[key]:.3f} |" for key, text in _PIXEL_FIGURES.items()]
    return "\n".join(lines)


def _operating_point(name: str, point: Mapping[str, Any]) -> str:
    mark = "*" if point.get("few_normal") else ""
    return f"| {name} | {figure_text(point['sensitivity'])}{mark} | {point['specificity']:.2f} | {point['threshold']:.4f} |"


def _limits() -> str:
    return "\n".join(
        [
            "## Limits",
            "",
            "- A score says how unlike the normal training images a radiograph is, not which disease it shows.",
            "- Scores depend on scanner, exposure, age group and projection; expect worse figures on another population.",
            "- Findings that the few abnormal training images do not show may be missed.",
            "- Anomaly maps are coarse: they show where a score comes from, not where a lesion ends.",
            "- Lateral views are recognised by their DICOM header only.",
        ]
    )


def _settings(model: TrainedModel, defaults: Mapping[str, Any] | None) -> str:
    lines = ["## Settings", "", "| option | value | |", "|---|---|---|"]
    for name, value in model.settings.items():
        if name in PRIVATE_SETTINGS:
            continue
        changed = defaults is not None and name in defaults and defaults[name] != value
        lines.append(f"| `{name}` | {_shown(name, value)} | {'changed' if changed else ''} |")
    return "\n".join(lines)


def _licence(data_licence: str) -> str:
    terms = data_licence.strip() or "not stated; ask whoever gave you this model."
    return "\n".join(
        [
            "## Licence and reference",
            "",
            "Code and configurations: Apache-2.0. The weights contain the frozen backbone, under the terms of its publisher "
            "(`docs/data_license.txt` of the bundle).",
            "",
            f"Terms of the training images: {terms}",
            "",
            'Method: H. Ni, X. Zhang, M. Xu, N. Lang, X. Zhou, "Weakly Supervised Anomaly Detection for Chest X-Ray Image"; '
            "this is an independent implementation.",
        ]
    )


def _shown(name: str, value: Any) -> str:
    """Return a value for a cell of the table; of a path, the name of the file alone."""
    if isinstance(value, str) and "/" in value and name == "weights":
        return f"`{_cell(Path(value).name)}`"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(f"`{_cell(part)}`" for part in value) or "none"
    return f"`{_cell(json.dumps(value) if not isinstance(value, str) else value)}`"


def _cell(value: object) -> str:
    """Return a text that cannot break a table or a code span."""
    return str(value).replace("|", "\\|").replace("`", "'").replace("\n", " ")
