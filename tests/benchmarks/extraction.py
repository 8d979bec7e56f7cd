"""Extraction of a folder beside the bare network on the same images, already decoded: wall and processor time, interleaved.

    python tests/benchmarks/extraction.py DIR [--images 200] [--rounds 3]

"bare" is the network as published (float32, one image at a time, channels last, on all threads), the fastest plain way found;
"prepared" is the same with normalisations folded. "extraction" reads, decodes, computes and writes to an empty cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.features.backbones import create_backbone
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.system.progress import ahead


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--size", type=int, default=320)
    options = parser.parse_args()
    items = load_datalist(options.folder)["training"][: options.images]
    backbone = create_backbone(options.backbone, None, options.weights)
    features = PatchFeatures(backbone, 5, None, "coarsest").eval()
    preprocessing = Preprocessing(options.size, backbone.mean, backbone.std, intensity="standardised")
    threads = torch.get_num_threads()

    def extractor(cache):
        return PatchExtractor(features, preprocessing, cache=cache, progress=False)

    ready = extractor(False)
    images = [image["image"] for image in map(ready.transform, [dict(item) for item in items])]

    @torch.inference_mode()
    def bare(image):
        return features(image[None].contiguous(memory_format=torch.channels_last))

    def extract():
        with tempfile.TemporaryDirectory() as cache:
            extractor(cache).bank(items)

    bank = ready.bank(items[:50])

    def write():
        with tempfile.TemporaryDirectory() as cache:
            store = extractor(cache).cache
            rows = bank.rows.reshape(len(bank.files), -1, bank.rows.shape[1])
            for _ in range(max(1, len(items) // 50)):
                store.write([f"{i}" for i in range(len(rows))], rows)

    def single(function):
        torch.set_num_threads(1)
        function()
        torch.set_num_threads(threads)

    stages = {
        "bare": lambda: list(ahead(bare, images, threads, 2 * threads)),
        "prepared": lambda: list(ready.run([{"file": "", "image": i} for i in images])),
        "extraction": extract,
        "  digests": lambda: [file_digest(item["image"]) for item in items],
        "  decoding, resizing": lambda: single(lambda: [ready.transform(dict(item)) for item in items]),
        "  writing": write,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
    for name in ("bare", "prepared"):
        stages[name]()
    for _ in range(options.rounds):
        for name, function in stages.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        report(found, len(items), options, threads)


def report(found, images, options, threads) -> None:
    """Medians so far."""
    print(
        f"{images} images of {Path(options.folder).name}, {options.size} pixels, {options.backbone}, {threads} threads"
    )
    base = [statistics.median(column) for column in zip(*found["bare"], strict=True)]
    for name, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name:<22}{1000 * wall / images:>8.1f} ms wall{1000 * cpu / images:>8.1f} ms processor per image"
            f"{wall / base[0]:>8.2f}{cpu / base[1]:>8.2f} of bare"
        )
    print(flush=True)


if __name__ == "__main__":
    main()
