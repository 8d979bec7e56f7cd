"""What a label server does by itself: it looks for new images and scores them."""

from __future__ import annotations

import logging
import threading

from monai_wscxr.errors import InputError
from monai_wscxr.label.workbench import Workbench
from monai_wscxr.system.atomic import as_disk_full

logger = logging.getLogger("monai_wscxr")

RESCAN_SECONDS = 60.0


def keep_up(workbench: Workbench) -> None:
    """Score the archive and look for new images every minute, in a thread of its own, until the workbench stops."""
    threading.Thread(target=_rescan, args=(workbench,), name="archive", daemon=True).start()


def _rescan(workbench: Workbench) -> None:
    while not workbench.stopping.is_set():
        try:
            workbench.refresh()
        except InputError as error:
            if workbench.stopping.is_set():
                return
            logger.warning("the archive cannot be scored: %s", error)
        except Exception as error:
            full = as_disk_full(error)
            if full is None:
                logger.exception("scoring the archive failed")
            else:
                logger.warning("the archive cannot be scored: %s", full)
        workbench.stopping.wait(RESCAN_SECONDS)
