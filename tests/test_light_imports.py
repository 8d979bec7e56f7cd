"""What predicting imports: libraries that take longer to import than a picture takes to score stay out."""

import json
import subprocess
import sys

from monai_wscxr.features.backbones import create_backbone

SLOW = ("monai", "ignite", "timm", "torchvision", "sklearn", "scipy.ndimage", "scipy.stats", "torch._dynamo")
CODE = """
import json, sys
import monai_wscxr.adaptation.site
import monai_wscxr.prediction.interactive
import monai_wscxr.prediction.run
import monai_wscxr.prediction.tasks
from monai_wscxr.model.artefact import load_model
load_model(sys.argv[1])
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))
"""


def test_predicting_and_adapting_import_no_slow_library(make_model, tmp_path):
    make_model(tmp_path / "model", backbone=create_backbone("efficientnet_lite0"))
    command = [sys.executable, "-c", CODE, str(tmp_path / "model"), *SLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_worker_processes_import_no_torch():
    """They start in a second, and exported models have no torch."""
    code = (
        "import sys; import monai_wscxr.prediction.tasks, monai_wscxr.data.isolation, monai_wscxr.node.results;"
        "import monai_wscxr.report.dicom, monai_wscxr.prediction.run; print([n for n in sys.argv[1:] if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "torch", *SLOW], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_list_names_what_exists():
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *SLOW], check=True, capture_output=True)
