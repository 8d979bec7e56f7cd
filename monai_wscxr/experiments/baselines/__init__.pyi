from monai_wscxr.experiments.baselines.common import Method as Method
from monai_wscxr.experiments.baselines.common import normal_split as normal_split
from monai_wscxr.experiments.baselines.common import run_method as run_method
from monai_wscxr.experiments.baselines.cutpaste import CutPaste as CutPaste
from monai_wscxr.experiments.baselines.patchcore import PatchCore as PatchCore
from monai_wscxr.experiments.baselines.simplenet import SimpleNet as SimpleNet
