from monai_wscxr.features.backbones import Backbone as Backbone
from monai_wscxr.features.backbones import create_backbone as create_backbone
from monai_wscxr.features.extraction import PatchExtractor as PatchExtractor
from monai_wscxr.features.inference import Inference as Inference
from monai_wscxr.features.parallel import ThreadParallel as ThreadParallel
from monai_wscxr.features.patches import PatchFeatures as PatchFeatures
from monai_wscxr.features.patches import to_rows as to_rows
