from monai_wscxr.experiments.protocol.methods import EFFORTS as EFFORTS
from monai_wscxr.experiments.protocol.methods import METHODS as METHODS
from monai_wscxr.experiments.protocol.methods import parse_methods as parse_methods
from monai_wscxr.experiments.protocol.run import TABLES as TABLES
from monai_wscxr.experiments.protocol.run import run_protocol as run_protocol
