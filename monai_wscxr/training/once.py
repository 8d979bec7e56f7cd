"""One training by the bundle's own configuration, inside this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import Tensor

from monai_wscxr.bank.rows import RowSource
from monai_wscxr.errors import find_input_error
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.system.atomic import as_disk_full
from monai_wscxr.training.configs import find_configs
from monai_wscxr.training.mining_handler import TrainingStages


def training_workflow(
    dataset_dir: str | Path,
    output_dir: str | Path,
    options: Mapping[str, Any],
    configs: Path | None = None,
    files: tuple[str, ...] = ("train.yaml",),
) -> ConfigWorkflow:
    """Create the workflow of a training; nothing is read or written before it is initialised.

    Args:
        dataset_dir, output_dir: as on the command line.
        options: options of the configuration, and overrides of its components.
        configs: folder with the configurations; None takes that of the bundle beside the package.
        files: names of the configurations, later ones on top of earlier ones.
    """
    folder = find_configs() if configs is None else configs
    return ConfigWorkflow(
        config_file=[str(folder / name) for name in files],
        workflow_type="train",
        run_id="training",
        logging_file=False,
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        **{"progress": False, **options},
    )


def train_once(
    dataset_dir: str | Path,
    output_dir: str | Path,
    options: Mapping[str, Any],
    configs: Path | None = None,
    extractor: PatchExtractor | None = None,
    digests: Mapping[str, str] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Train one model by the bundle's `train.yaml`.

    Args:
        dataset_dir: folder or data list.
        output_dir: new, or that of the same run.
        options: options of `train.yaml`.
        configs: folder with the configurations; None takes that of the bundle beside the package.
        extractor: makes the features, in place of one from the options; its features then stay at hand between trainings.
        digests: content digests that are known already, by file.
        on_progress: called with a stage ("mining", "training") and the share of it that is done.

    Returns:
        the output folder, with the finished model.

    Raises:
        InputError: when options, images, memory or disk do not allow the training.
    """
    values = dict(options)
    if extractor is not None:
        values |= {"extractor": extractor, "features_def": extractor.features}
    if digests is not None:
        values["split#digests"] = dict(digests)
    workflow = training_workflow(dataset_dir, output_dir, values, configs)
    try:
        workflow.initialize()
        if on_progress is not None:
            _report_progress(workflow.parser.get_parsed_content("train#trainer"), on_progress)
        workflow.run()
        workflow.finalize()
    except Exception as error:  # MONAI wraps what its expressions raise
        found = find_input_error(error) or as_disk_full(error)
        if found is None or found is error:
            raise
        raise found from error
    return Path(output_dir)


def trainer_on_banks(
    discriminator: Discriminator, normal: Tensor | RowSource, mined: Tensor, options: Mapping[str, Any]
) -> Engine:
    """Create the bundle's own trainer on rows that exist already, without files, mining and artefact.

    Args:
        discriminator: what is trained.
        normal: [N, C] rows of the normal bank, whitened if wanted.
        mined: [k, C] rows of the mined bank, likewise.
        options: options of `train.yaml`.

    Returns:
        the trainer; `run()` trains. Handlers that need no banks may be attached.
    """
    values = {"network": SimpleNamespace(discriminator=discriminator), "train#handlers": [], **options}
    parser = training_workflow(".", ".", values).parser
    dataset, trainer = parser.get_parsed_content("train#dataset"), parser.get_parsed_content("train#trainer")
    dataset.fill(normal)
    parser.get_parsed_content("train#inferer").fill(mined)

    def set_length(engine: Engine) -> None:
        engine.state.epoch_length = dataset.batches_per_epoch

    trainer.add_event_handler(Events.STARTED, set_length)
    return trainer


def _report_progress(trainer: Engine, on_progress: Callable[[str, float], None]) -> None:
    """Call `on_progress` when mining starts, when training starts, and every 20 steps."""
    epochs = trainer.state.max_epochs or 1

    def step(engine: Engine) -> None:
        on_progress("training", engine.state.iteration / (epochs * (engine.state.epoch_length or 1)))

    trainer.add_event_handler(TrainingStages.MINING_STARTED, lambda engine: on_progress("mining", 0.0))
    trainer.add_event_handler(Events.STARTED, lambda engine: on_progress("training", 0.0))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=20), step)
