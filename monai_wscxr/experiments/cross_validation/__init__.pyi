from monai_wscxr.experiments.cross_validation.run import VARIANTS as VARIANTS
from monai_wscxr.experiments.cross_validation.run import CrossValidation as CrossValidation
from monai_wscxr.experiments.cross_validation.run import cross_validate as cross_validate
from monai_wscxr.experiments.cross_validation.splits import RandomSplit as RandomSplit
from monai_wscxr.experiments.cross_validation.splits import random_split as random_split
from monai_wscxr.experiments.cross_validation.training import SplitFeatures as SplitFeatures
from monai_wscxr.experiments.cross_validation.training import train as train
