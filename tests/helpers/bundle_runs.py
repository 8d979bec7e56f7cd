"""Runs of the bundle inside this process."""

from pathlib import Path

from monai.bundle import create_workflow

CONFIGS = Path(__file__).parents[2] / "bundles" / "wscxr_chest_xray" / "configs"


SMALL = {
    "image_size": 64,
    "k": 1,
    "epochs": 3,
    "min_batches": 5,
    "false_positive_rate": 0.3,
    "progress": False,
    "device": "cpu",
    "runtime": "torch",
}


def workflow(config, dataset_dir, output_dir, **overrides):
    """A started workflow of one of the bundle's configurations, small enough for tests."""
    run_id = {"train": "training", "evaluate": "evaluating", "inference": "inferring"}[config]
    return create_workflow(
        config_file=str(CONFIGS / f"{config}.yaml"),
        workflow_type="train" if config == "train" else "infer",
        run_id=run_id,
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        **{**(SMALL if config == "train" else {"device": "cpu", "runtime": "torch"}), **overrides},
    )


def run(config, dataset_dir, output_dir, **overrides):
    """Run a workflow to its end and return it."""
    started = workflow(config, dataset_dir, output_dir, **overrides)
    started.run()
    started.finalize()
    return started
