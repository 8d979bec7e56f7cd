"""Extraction, prediction and start by runtime, in processor seconds, and what is installed. Not collected by default; run

    python -m pytest tests/benchmarks/bench_pipeline.py --benchmark-enable

The images are phantoms of 1,024 pixels; the network is that of `train.yaml`, 320 pixels. All but the start happens in one
process, whose processor time is what counts. The additional information of a saved table (`--benchmark-json`) holds "images per
CPU second", and for the start wall seconds and the megabytes that the package occupies with what it requires; `-rP`
prints them.
"""

import importlib.metadata
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
from packaging.requirements import Requirement

from monai_wscxr.data.phantom import write_phantoms
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.features.backbones import create_backbone
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.features.inference import Inference, runtime_states
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.prediction.interactive import train
from monai_wscxr.prediction.options import Options
from monai_wscxr.prediction.run import predict

IMAGES = {"small": 24, "full": 200}[os.environ.get("MONAI_WSCXR_BENCH", "small")]
RUNTIMES = ("torch", "openvino", "onnxruntime")
OUTPUTS = {
    "all": {},
    "no maps": {"maps": "none"},
    "scores": {"maps": "none", "overlays": False, "report": False},
}
pytestmark = pytest.mark.benchmark(timer=time.process_time, min_rounds=3, warmup=True, warmup_iterations=1)


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory):
    """Folder of phantoms as data set: `IMAGES` normal ones to train with."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(folder, IMAGES, 1, 1, 1, size=1024, progress=False)
    return folder


@pytest.fixture(scope="module")
def model(radiographs, tmp_path_factory):
    """Folder of a model trained on the phantoms."""
    folder = tmp_path_factory.mktemp("model") / "run"
    train(
        radiographs, folder, k=1, epochs=1, copies=0, opacities=0, false_positive_rate=0.3, progress=False, device="cpu"
    )
    return folder


def installed(runtime):
    if "not installed" in runtime_states()[runtime]:
        pytest.skip(runtime_states()[runtime])
    return runtime


def report(benchmark, images):
    if benchmark.stats is not None:
        benchmark.extra_info["images per CPU second"] = round(images / benchmark.stats.stats.median, 2)
        print(f"\n{benchmark.name}: {benchmark.extra_info}")


@pytest.fixture(scope="module")
def features():
    return PatchFeatures(create_backbone("efficientnet_lite0"), 3, None, "coarsest").eval()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_network(benchmark, features, radiographs, runtime):
    backbone = features.backbone
    extractor = PatchExtractor(
        features, Preprocessing(320, backbone.mean, backbone.std), cache=False, runtime=installed(runtime)
    )
    files = sorted(map(str, radiographs.glob("train/normal/*")))
    loaded = [extractor.transform({"image": file, "file": file}) for file in files[:16]]
    benchmark.group = f"network, {len(loaded)} images"
    found = benchmark(lambda: list(extractor.run(loaded)))
    assert len(found) == len(loaded)
    report(benchmark, len(loaded))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_extraction(benchmark, features, radiographs, tmp_path, runtime):
    backbone = features.backbone
    items = [{"image": str(file)} for file in sorted(radiographs.glob("train/normal/*"))]
    Inference(features, runtime=installed(runtime), image_size=320, cache=tmp_path)  # converted before the clock starts
    numbers = iter(range(10**6))

    def extract():
        preprocessing = Preprocessing(320, backbone.mean, backbone.std)
        cache = tmp_path / str(next(numbers))
        if runtime != "torch":
            shutil.copytree(tmp_path / "networks", cache / "networks")
        extractor = PatchExtractor(features, preprocessing, cache=cache, progress=False, runtime=runtime)
        return extractor.bank(items)

    benchmark.group = f"extraction to an empty cache, {len(items)} images"
    assert len(benchmark(extract).files) == len(items)
    report(benchmark, len(items))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_prediction(benchmark, model, radiographs, tmp_path, runtime, outputs):
    options = Options(
        model=str(model),
        paths=(str(radiographs / "train" / "normal"),),
        output=str(tmp_path / "out"),
        workers=0,
        overwrite=True,
        progress=False,
        runtime=installed(runtime),
        allow=("unlike_a_chest",),
        **OUTPUTS[outputs],
    )
    benchmark.group = f"prediction, {IMAGES} images, outputs: {outputs}"
    assert benchmark(lambda: predict(options)).rejected == 0
    report(benchmark, IMAGES)


def children_seconds():
    """Processor seconds of all processes that have been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def installed_megabytes(*extras):
    """Size of all packages that this one requires with these extras."""
    sizes, waiting = {}, [("monai-wscxr", extras)]
    while waiting:
        name, wanted = waiting.pop()
        if name in sizes:
            continue
        found = importlib.metadata.distribution(name)
        paths = [found.locate_file(file) for file in found.files or ()]
        sizes[name] = sum(path.stat().st_size for path in paths if path.is_file())
        for text in found.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted):
                waiting.append((requirement.name.lower().replace("_", "-"), ("",)))
    return round(sum(sizes.values()) / 1e6)


@pytest.mark.benchmark(timer=children_seconds)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_start(benchmark, model, radiographs, tmp_path, runtime):
    picture = next((radiographs / "train" / "normal").iterdir())
    command = [sys.executable, "-m", "monai_wscxr", "predict", str(picture), "--model", str(model), "--quiet"]
    command += ["--output", str(tmp_path / "out"), "--overwrite", "--workers", "0", "--allow", "unlike_a_chest"]
    walls = []

    def start():
        began = time.perf_counter()
        subprocess.run([*command, "--runtime", installed(runtime)], check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - began)

    benchmark.group = "predict of one picture, start to exit"
    benchmark.pedantic(
        start, rounds=3, warmup_rounds=1
    )  # this timer cannot be calibrated: it moves when a process ends
    benchmark.extra_info["wall seconds"] = round(sorted(walls)[len(walls) // 2], 2)
    benchmark.extra_info["installed MB"] = installed_megabytes("full", *(() if runtime == "torch" else (runtime,)))
    print(f"\n{runtime}: {benchmark.extra_info}")
