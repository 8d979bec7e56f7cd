"""A published collection to a datalist file, as `monai-wscxr datalist` does."""

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
    """Read a collection, write its datalist and describe it.

    Args:
        collection: a name in `READERS`.
        folder: folder of the unpacked collection, as published.
        output: JSON file to write.
        limits: how many images to take.
        skip_missing: leave out missing images instead of failing.
        policies: options of the collection's reader (uncertain, view, other, readers).

    Returns:
        Numbers of images, patients and classes of each part, and of the images left out, as lines of text.

    Raises:
        DatalistError: for an unknown collection, an option that its reader does not have, or any error of the reader.
    """
    if collection not in READERS:
        raise DatalistError(f"there is no reader for {collection!r}; allowed are {', '.join(READERS)}")
    root, reader = Path(folder), READERS[collection]
    if not root.is_dir():
        raise DatalistError(f"{root} is not a folder; give the folder of the unpacked collection")
    unknown = [name for name in policies if name not in inspect.signature(reader).parameters]
    if unknown:
        raise DatalistError(f"{collection} has no option {', '.join(unknown)}")
    left_out: Counter[str] = Counter()
    records: list[Record] = reader(root, left_out, **policies)
    if skip_missing:
        present = [record for record in records if record.image.is_file()]
        left_out["image file is missing"] += len(records) - len(present)
        records = present
    else:
        need_files(root, records)
    # the publication draws images of ZhangLab, not patients
    datalist = assemble(records, limits, left_out, draw_patients=collection != "zhanglab")
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
