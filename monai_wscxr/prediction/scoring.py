"""Scoring of images as they come, for programs that run until they are stopped.

Worker processes with limits read the images and write results, the network runs in this process, as in a run of `predict`.
A result does not depend on the images that pass the network together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from monai_wscxr.data.isolation import lost_error, time_limit
from monai_wscxr.data.radiograph.base import MEMORY_LIMIT, RadiographError
from monai_wscxr.model.predictions import Prediction, check_images, to_prediction
from monai_wscxr.prediction import tasks
from monai_wscxr.prediction.network import Network
from monai_wscxr.prediction.results import add_drift
from monai_wscxr.prediction.tasks import Loaded, OutputOptions
from monai_wscxr.system.workers import WorkerLostError, WorkerPool

PRELOAD = ("monai_wscxr.prediction.tasks",)
"""Modules that worker processes import."""
_WRITING_SECONDS = 600.0


@dataclass(frozen=True)
class Score:
    """A score of an image, and what a task needs to make results of it.

    Attributes:
        prediction: with its patch scores.
        loaded: the image as it was read, without the network's input.
        outcome: JSON values: `anomaly_score`, `p_value`, `abnormal`, `acquired`, and `site_coordinates` with `site_p_value`
            if the model has a reference for drift.
    """

    prediction: Prediction
    loaded: Loaded
    outcome: dict[str, Any] = field(default_factory=dict)


class Scorer:
    """A model with worker processes.

    Args:
        network: the model, opened.
        workers: number of processes, at least 1.
        allow: reason codes of readable images that are scored anyway.
        seconds: time limit for reading a file; one second more per MiB.
        preload: further modules whose functions workers will run.

    Attributes:
        model: description of the model.
    """

    def __init__(
        self,
        network: Network,
        workers: int = 2,
        allow: Sequence[str] = (),
        seconds: float = 10.0,
        preload: Sequence[str] = (),
    ) -> None:
        self.network, self.model = network, network.model
        self.seconds, self.allow = seconds, tuple(allow)
        output = OutputOptions("", allow=self.allow)
        arguments = (self.model.without_network(), output)
        self.pool = WorkerPool(workers, tasks.prepare, arguments, _WRITING_SECONDS, MEMORY_LIMIT, (*PRELOAD, *preload))

    def read(self, path: str) -> Future[Loaded]:
        """Begin to read an image in a worker."""
        return self.pool.submit(tasks.read, path, seconds=time_limit(path, self.seconds))

    def loaded(self, path: str, future: Future[Loaded]) -> Loaded | RadiographError:
        """Wait for an image; return it, or the reason why it cannot be used."""
        try:
            return future.result()
        except RadiographError as error:
            return error
        except WorkerLostError as lost:
            return lost_error(lost, time_limit(path, self.seconds))

    def score(self, images: Sequence[Loaded | RadiographError], name: str = "image") -> list[Score | RadiographError]:
        """Pass images through the network.

        Args:
            images: as `loaded` returned them; reasons pass unchanged.
            name: stands for the images in messages.

        Raises:
            InputError: when the model gives NaN or Inf.
        """
        found: list[Score | RadiographError] = [image for image in images if isinstance(image, RadiographError)]
        usable = [image for image in images if isinstance(image, Loaded)]
        if not usable:
            return found
        scores, means = self.network(np.stack([tasks.network_input(self.model.preprocessing, i) for i in usable]))
        refusals = check_images(self.model, means, self.allow)
        drift = self.model.drift
        places = None if drift is None else drift.coordinates(means)
        scored: list[Score | RadiographError] = []
        for n, image in enumerate(usable):
            refusal = refusals[n]
            if refusal is not None:
                scored.append(refusal)
                continue
            prediction = to_prediction(self.model, name, scores[n, 0])
            outcome: dict[str, Any] = {
                "anomaly_score": prediction.anomaly_score,
                "p_value": prediction.p_value,
                "abnormal": bool(prediction.abnormal),
                "acquired": dict(image.acquired),
            }
            if places is not None:
                add_drift(outcome, places[n], self.model)
            small = replace(image, image=np.empty((0, 0, 0), np.float32))
            scored.append(Score(prediction, small, outcome))
        following = iter(scored)
        return [image if isinstance(image, RadiographError) else next(following) for image in images]

    def submit(self, task: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Future[Any]:
        """Run a task in a worker before images that wait to be read."""
        return self.pool.submit(task, *arguments, urgent=True, seconds=seconds)

    def close(self) -> None:
        """End the worker processes."""
        self.pool.close()
