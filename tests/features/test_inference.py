"""The frozen network in each runtime: the features of torch, or one sentence why not."""

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.features.inference import Inference, runtime_states
from monai_wscxr.features.runtime import converted
from monai_wscxr.features.runtime.base import RuntimeUnusableError
from monai_wscxr.features.runtime.openvino_runtime import OpenVINORuntime

BOTH = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Cache folder in which converted networks stay from test to test."""
    return tmp_path_factory.mktemp("kept")


def record_of(cache):
    (path,) = cache.glob("networks/*/record.json")
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("align_to", ["coarsest", "finest"])
@pytest.mark.parametrize("runtime", BOTH)
def test_every_runtime_gives_the_features_of_torch(make_features, kept, runtime, align_to):
    features = make_features(("2", "3"), align_to=align_to)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ready = Inference(features, runtime=runtime, image_size=64, cache=kept)
    with torch.inference_mode():
        got, expected = ready(images), features(images)
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert ready.folded > 0
    assert 0 <= ready.check.difference < 1e-5
    assert ready.check.seconds > 0
    assert ready.record() == {
        "name": runtime,
        "version": runtime_states()[runtime],
        "precision": "float32",
        "difference": ready.check.difference,
    }
    with pytest.raises(ValueError, match=r"takes images \(3, 64, 64\), got \(3, 96, 64\)"):
        ready(torch.zeros(1, 3, 96, 64))


@pytest.mark.parametrize("runtime", BOTH)
def test_threads_share_a_network_and_each_gets_its_own_result(make_features, kept, runtime):
    ready = Inference(make_features(("2", "3"), align_to="finest"), runtime=runtime, image_size=64, cache=kept)
    images = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(2)).split(1)
    alone = [ready(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ready, images))
    assert all(map(torch.equal, together, alone))


def test_a_network_is_converted_once_for_all_that_it_depends_on(make_features, tmp_path, monkeypatch):
    made = []
    make = converted._make
    monkeypatch.setattr(converted, "_make", lambda *given: (made.append(1), make(*given))[1])

    def ready(seed=0, size=64):
        return Inference(make_features(seed=seed), runtime="openvino", image_size=size, cache=tmp_path)

    image = torch.randn(1, 3, 64, 64)
    first = ready()(image)
    assert torch.equal(ready()(image), first)
    assert len(made) == 1
    ready(seed=1)
    ready(size=96)
    assert len(made) == 3
    monkeypatch.setattr(OpenVINORuntime, "installed_version", staticmethod(lambda: "another"))
    ready()
    assert len(made) == 4


def test_a_damaged_file_is_made_again(make_features, tmp_path):
    def ready():
        return Inference(make_features(), runtime="openvino", image_size=64, cache=tmp_path)

    image = torch.randn(1, 3, 64, 64)
    first = ready()(image)
    path, record = record_of(tmp_path)
    weights = path.with_name("network.bin")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9] + b"x" * 9)
    assert torch.equal(ready()(image), first)
    assert weights.read_bytes() == whole
    path.write_text("{")
    assert torch.equal(ready()(image), first)
    assert record_of(tmp_path)[1]["files"].keys() == record["files"].keys()


def test_a_runtime_that_differs_is_refused_and_auto_takes_another(make_features, tmp_path, monkeypatch):
    call = OpenVINORuntime.__call__
    monkeypatch.setattr(OpenVINORuntime, "__call__", lambda self, image: 1.001 * call(self, image))
    with pytest.raises(
        RuntimeUnusableError, match=r"openvino is not used: .* by 1\.0e-03 .* allowed are 1e-04; choose"
    ):
        Inference(make_features(), runtime="openvino", image_size=64, cache=tmp_path)
    monkeypatch.setattr(OpenVINORuntime, "__call__", call)
    with pytest.raises(RuntimeUnusableError, match="is not used"):  # it stays in the record
        Inference(make_features(), runtime="openvino", image_size=64, cache=tmp_path)
    chosen = Inference(make_features(), runtime="auto", image_size=64, cache=tmp_path)
    assert chosen.runtime.name in ("onnxruntime", "torch")


def test_a_network_that_gives_inf_is_left_to_torch(make_features, tmp_path):
    features = make_features()
    next(features.parameters()).data.fill_(1e38)
    with pytest.raises(RuntimeUnusableError, match="the network gives NaN or Inf; choose --runtime torch"):
        Inference(features, runtime="openvino", image_size=64, cache=tmp_path)
    assert Inference(features, runtime="auto", image_size=64, cache=tmp_path).runtime.name == "torch"


@pytest.mark.parametrize(("seconds", "name"), [((1.0, 2.0), "openvino"), ((2.0, 1.0), "torch")])
def test_auto_takes_the_faster_one(make_features, tmp_path, monkeypatch, seconds, name):
    monkeypatch.setattr(converted, "_seconds", lambda *given: list(seconds))
    ready = Inference(make_features(), runtime="auto", image_size=64, cache=tmp_path)
    assert ready.runtime.name == name


def test_auto_without_other_runtimes_is_torch(make_features, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert Inference(make_features(), runtime="auto", image_size=64, cache=tmp_path).runtime.name == "torch"
    states = runtime_states()
    assert "pip install 'monai-wscxr[openvino]'" in states["openvino"]
    assert "(onnxscript missing)" in states["onnxruntime"]
    for runtime, words in (
        ("openvino", "runtime openvino is not installed"),
        ("onnxruntime", "conversion to ONNX needs"),
    ):
        with pytest.raises(InputError, match=words):
            Inference(make_features(), runtime=runtime, image_size=64, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_costs_a_conversion_only(make_features, tmp_path, caplog):
    (tmp_path / "networks").write_text("a file in the way")
    ready = Inference(make_features(), runtime="openvino", image_size=64, cache=tmp_path)
    assert ready.runtime.name == "openvino"
    assert "the converted network cannot be kept" in caplog.text


def test_openvino_does_not_report_its_use():
    """The import of openvino alone sends an event to Google Analytics where its telemetry package is installed."""
    program = (
        "import sys; from monai_wscxr.features.runtime.openvino_runtime import import_openvino; import_openvino();"
        "import openvino.tools.ovc; print([m for m in sys.modules if m.split('.')[0] == 'openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision must be one of float32, bfloat16, got 'int4'"),
        ({"runtime": "tvm"}, "runtime must be one of auto, torch, openvino, onnxruntime, got 'tvm'"),
        (
            {"runtime": "openvino", "compiled": True, "image_size": 64},
            "with compile_network off; choose --runtime auto",
        ),
        ({"runtime": "onnxruntime", "precision": "bfloat16", "image_size": 64}, "computes in float32, not in bfloat16"),
    ],
)
def test_what_cannot_be_is_one_sentence(make_features, kept, options, message):
    with pytest.raises(InputError, match=message):
        Inference(make_features(), cache=kept, **options)


def test_lower_precision_names_its_runtime_in_the_cache(make_features, kept):
    def settings(runtime, precision="float32"):
        return Inference(make_features(), precision, runtime=runtime, image_size=64, cache=kept).settings()

    assert settings("openvino") == settings("torch") == settings("onnxruntime")
    if "BF16" in OpenVINORuntime.machine():
        assert settings("openvino", "bfloat16") == {**settings("torch", "bfloat16"), "runtime": "openvino"}
