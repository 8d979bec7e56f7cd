"""One page for the tables of several data sets, with the published columns side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monai_wscxr.experiments.protocol.chart import Key
from monai_wscxr.experiments.protocol.page import METRICS, counted_seeds, duration_text, length_text, spread_text
from monai_wscxr.experiments.protocol.table import Table
from monai_wscxr.system.atomic import write_text_atomic

SHOWN = ("auroc", "accuracy", "f1")


def write_combined(folder: Path, tables: Mapping[str, Table], command: str) -> Path:
    """Write `results.md` of several data sets, each of whose own page lies in the folder of its name.

    Args:
        folder: output folder of the protocol.
        tables: finished table of each data set, by name.
        command: command line, for the record.

    Returns:
        Path of the Markdown file.
    """
    path = folder / "results.md"
    write_text_atomic(path, combined_page(tables, command))
    return path


def combined_page(tables: Mapping[str, Table], command: str) -> str:
    """Return the content of the page; arguments as of `write_combined`."""
    first = next(iter(tables.values()))
    rows = list(dict.fromkeys(key for table in tables.values() for key in table.rows))
    titles = {name: title for table in tables.values() for name, title in table.titles.items()}
    heading = "Comparison of methods" if first.table == "table1" else "Ablation: mining and mixing"
    lines = [f"# {heading}: {', '.join(tables)}", ""]
    for name, table in tables.items():
        images = table.record["images"]
        parts = [
            f"{sum(counts.values()):,} to {verb} ({', '.join(f'{count:,} {kind}' for kind, count in counts.items())})"
            for part, verb in (("training", "train from"), ("test", "test"))
            if (counts := images.get(part))
        ]
        lines.append(f"- **{name}**: {'; '.join(parts)}. [Its own page]({name}/results.md)")
    columns = " | ".join(f"{name}: {METRICS[metric]}" for name in tables for metric in SHOWN)
    rules = {
        "honest": (
            "Honest: nothing chosen on test images",
            f"Mean over {counted_seeds(first.record['seeds'])} ± standard deviation over them; AUROC with the 95 % interval "
            "over resamples of the patients of the test images. k counts abnormal training images per class.",
        ),
        "paper": (
            "Paper: epoch and threshold chosen on the test images (optimistic)",
            "By the published rules, only for comparison with published tables.",
        ),
    }
    for rule, (title, text) in rules.items():
        lines += ["", f"## {title}", "", text, "", f"| method | k | {columns} |", "|" + "---|" * (2 + 3 * len(tables))]
        for key in rows:
            cells = [cell for table in tables.values() for cell in _figures(table, key, rule)]
            lines.append(f"| {titles[key[0]]} | {'-' if key[1] is None else key[1]} | " + " | ".join(cells) + " |")
    columns = " | ".join(f"{name}: length | images | processor time" for name in tables)
    lines += ["", "## Training", "", f"| method | k | network | {columns} |", "|" + "---|" * (3 + 3 * len(tables))]
    for key in rows:
        cells = [cell for table in tables.values() for cell in _cost(table, key)]
        network = next(table.rows[key][0]["training"]["network"] for table in tables.values() if key in table.rows)
        lines.append(
            f"| {titles[key[0]]} | {'-' if key[1] is None else key[1]} | {network} | " + " | ".join(cells) + " |"
        )
    return "\n".join([*lines, "", "```", command or "(library call)", "```", ""])


def _figures(table: Table, key: Key, rule: str) -> list[str]:
    """Return the cells of a row for one data set."""
    found = table.summary.get(key)
    if found is None:
        return ["-"] * len(SHOWN)
    if rule == "paper":
        return [f"{found['paper'][metric]:.3f}" for metric in SHOWN]
    return [spread_text(found["honest"][metric], found["seeds"], bracket=metric == "auroc") for metric in SHOWN]


def _cost(table: Table, key: Key) -> list[str]:
    """Return length, number of training images and processor time of a row for one data set."""
    if key not in table.rows:
        return ["-"] * 3
    trained = [result["training"] for result in table.rows[key]]
    images = sum(one["images"] for one in trained) / len(trained)
    seconds = sum(one["processor_seconds"] for one in trained) / len(trained)
    return [length_text(trained[0]), f"{images:.0f}", duration_text(seconds)]
