"""Images of an evaluation or an inference run, checked before any of them is read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.data.listing import IMAGE_SUFFIXES, list_images
from monai_wscxr.data.masks import check_masks
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.data.selection import check_overlap
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel

logger = logging.getLogger("monai_wscxr")

Item = dict[str, Any]


def evaluation_items(model: TrainedModel, source: str | Path, allow_overlap: bool = False) -> list[Item]:
    """Return the test items of a data set, checked against the images that the model was trained on.

    Args:
        model: the trained model.
        source: folder or data list with a test part.
        allow_overlap: accept test images that were trained on.

    Raises:
        InputError: when the test part lacks normal or abnormal images, a lesion mask cannot be used, or training and test share
            images or patients.
    """
    datalist = load_datalist(source)
    items = datalist["test"]
    labels = [item["label"] for item in items]
    if set(labels) != {0, 1}:
        raise InputError(
            f"{source} has {labels.count(0)} normal and {labels.count(1)} abnormal test images; "
            "evaluation needs both, under test/normal and test/abnormal[/CLASS]"
        )
    check_masks(items)
    if not isinstance(model.training.get("digests"), list):
        raise InputError(
            f"{model.folder} does not record the images of its training, so it cannot be evaluated; train again"
        )
    known = model.known_digests
    trained_on = [item["image"] for item in items if file_digest(item["image"]) in known]
    if trained_on and not allow_overlap:
        raise InputError(
            f"{len(trained_on)} of {len(items)} test images took part in training or adapting this model (first: "
            f"{trained_on[0]}); the metrics would be too good. Remove these images, or accept the overlap with "
            "--allow_overlap true"
        )
    if not allow_overlap:
        check_overlap(datalist["training"], items)
    return items


def inference_items(source: str | Path) -> list[Item]:
    """Return an item for every image in a folder and its subfolders, or for one file, without labels; log what is left out.

    Args:
        source: the folder or file; "" gives no items, so that a bundle can be inspected without images.

    Raises:
        InputError: when there is no image.
    """
    if not str(source):
        return []
    listing = list_images([source])
    if listing.left_out:
        logger.info("%s: %s", source, listing.summary())
    if not listing.images:
        raise InputError(f"{source} holds no radiograph ({', '.join(IMAGE_SUFFIXES)}, or DICOM); check --dataset_dir")
    return [{"image": str(file)} for file in listing.images]
