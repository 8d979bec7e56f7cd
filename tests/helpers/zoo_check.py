"""What the model zoo of MONAI checks of a bundle before it takes it, written anew from the description of its checks.

Modes: `min` and `regular` check files and metadata, `regular` without the version; `full` adds properties, shapes and
TorchScript with the weights of the bundle; `fake` is `full` with random weights in their place.
"""

import json
from pathlib import Path

import torch
from monai.bundle import ConfigParser, ckpt_export, create_workflow, verify_metadata, verify_net_in_out

MODES = ("min", "regular", "full", "fake")
LARGEST_FILE = 25 << 20
# keys that the published schema of metadata.json requires
REQUIRED = (
    *("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
)


def check_bundle(bundle: Path, mode: str, published: tuple[str, ...] = ()) -> None:
    """Check a bundle.

    Args:
        bundle: its folder.
        mode: one of `MODES`.
        published: names with versions that the zoo holds already, such as `name_v0.1.0`.

    Raises:
        ValueError: when the zoo would refuse the bundle.
    """
    assert mode in MODES
    _files(bundle)
    if mode != "regular":
        _version(bundle, published)
    _metadata(bundle)
    if mode in ("min", "regular"):
        return
    if mode == "fake":
        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / "inference.yaml"))
        parser.read_meta(str(bundle / "configs" / "metadata.json"))
        torch.save(parser.get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")
    else:
        _properties(bundle)
    common = {
        "net_id": "network_def",
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.yaml"),
        "bundle_root": str(bundle),
    }
    verify_net_in_out(device="cpu", **common)
    scripted = bundle / "models" / "verify_model.ts"
    ckpt_export(filepath=str(scripted), ckpt_file=str(bundle / "models" / "model.pt"), **common)
    torch.jit.load(str(scripted))
    scripted.unlink()
    if (bundle / "models" / "model.ts").exists():
        torch.jit.load(str(bundle / "models" / "model.ts"))


def _files(bundle):
    for name in ("LICENSE", "configs/metadata.json", "models/model.pt"):
        if not (bundle / name).is_file():
            raise ValueError(f"{name} is missing")
    if not any((bundle / "configs" / f"inference.{suffix}").is_file() for suffix in ("json", "yaml", "yml")):
        raise ValueError("the configuration of the inference is missing")
    large = [path.name for path in bundle.rglob("*") if path.is_file() and path.stat().st_size > LARGEST_FILE]
    if large:
        raise ValueError(f"too large: {large}")


def _version(bundle, published):
    described = json.loads((bundle / "configs" / "metadata.json").read_text())
    version = described["version"]
    if version not in described["changelog"]:
        raise ValueError(f"the changelog lacks version {version}")
    if f"{bundle.name}_v{version}" in published:
        raise ValueError(f"version {version} is published already")


def _metadata(bundle):
    schema = bundle / "eval" / "schema.json"
    schema.parent.mkdir(exist_ok=True)
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "required": REQUIRED,
                "properties": {
                    "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
                    "changelog": {"type": "object"},
                    "required_packages_version": {"type": "object"},
                },
            }
        )
    )
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))


def _properties(bundle):
    workflow = create_workflow(
        workflow_type="inference",
        bundle_root=str(bundle),
        config_file=str(bundle / "configs" / "inference.yaml"),
        logging_file=str(bundle / "configs" / "logging.conf"),
        meta_file=str(bundle / "configs" / "metadata.json"),
    )
    missing = workflow.check_properties()
    if missing:
        raise ValueError(f"missing properties: {missing}")
