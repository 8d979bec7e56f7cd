"""The paper's comparison (table 1) and ablation (table 2) as one command on anybody's data.

A cell is one method at one k and seed. Cells run in one process on one feature cache; each leaves one result file, written
atomically, so a killed run goes on where it stopped. `honest` figures choose nothing on test images; `paper` figures follow
the publication's rules and are optimistic.
"""

from monai_wscxr.experiments.protocol.run import METHODS, TABLES, run_protocol

__all__ = ["METHODS", "TABLES", "run_protocol"]
