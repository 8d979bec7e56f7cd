"""Published collections of chest radiographs to datalists: one file per collection, patients kept apart."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

from monai_wscxr.data.collections.chexpert import read_chexpert
from monai_wscxr.data.collections.common import Limits, Record, assemble, need_files, write_datalist
from monai_wscxr.data.collections.mimic import read_mimic
from monai_wscxr.data.collections.nih import read_nih
from monai_wscxr.data.collections.rsna import read_rsna
from monai_wscxr.data.collections.vindr import read_vindr
from monai_wscxr.data.collections.zhanglab import read_zhanglab
from monai_wscxr.data.datalist import DatalistError

READERS = {
    "zhanglab": read_zhanglab,
    "chexpert": read_chexpert,
    "nih": read_nih,
    "rsna": read_rsna,
    "vindr": read_vindr,
    "mimic": read_mimic,
}


def make_datalist(
    collection: str,
    folder: str | Path,
    output: str | Path,
    limits: Limits | None = None,
    skip_missing: bool = False,
    **policies: Any,
) -> str:
    """Read a collection, write its datalist, and say what is in it.

    Args:
        collection: one of `READERS`.
        folder: the collection as published.
        output: JSON file to write.
        limits: how much is taken.
        skip_missing: leave out images that are not there instead of failing.
        policies: what the collection's reader takes besides (uncertain, view, other, readers).

    Raises:
        DatalistError: on an unknown collection, a policy that its reader does not have, or whatever the reader finds.
    """
    if collection not in READERS:
        raise DatalistError(f"there is no reader for {collection!r}; there are {', '.join(READERS)}")
    root, reader = Path(folder), READERS[collection]
    if not root.is_dir():
        raise DatalistError(f"{root} is no folder; give the folder of the unpacked collection")
    unknown = [name for name in policies if name not in inspect.signature(reader).parameters]
    if unknown:
        raise DatalistError(f"{collection} has no option {', '.join(unknown)}")
    left_out: Counter[str] = Counter()
    records: list[Record] = reader(root, left_out, **policies)
    if skip_missing:
        there = [record for record in records if record.image.is_file()]
        left_out["image file is missing"] += len(records) - len(there)
        records = there
    else:
        need_files(root, records)
    datalist = assemble(records, limits, left_out)
    write_datalist(output, datalist)
    lines = []
    for part, items in datalist.parts.items():
        classes = Counter(item["class"] for item in items)
        listed = ", ".join(f"{count} {name}" for name, count in sorted(classes.items()))
        lines.append(
            f"{part}: {len(items)} images of {len({i['patient'] for i in items})} patients ({listed or 'none'})"
        )
    if datalist.boxes:
        lines.append(f"lesion boxes: {sum(map(len, datalist.boxes.values()))} on {len(datalist.boxes)} test images")
    lines += [f"left out: {count} ({why})" for why, count in sorted(datalist.left_out.items()) if count]
    return "\n".join([*lines, f"written: {output}"])


__all__ = ["READERS", "Limits", "Record", "assemble", "make_datalist", "write_datalist"]
