from monai_wscxr.experiments.protocol.run import METHODS as METHODS
from monai_wscxr.experiments.protocol.run import TABLES as TABLES
from monai_wscxr.experiments.protocol.run import run_protocol as run_protocol
