from monai_wscxr.adaptation.adapt import Adaptation as Adaptation
from monai_wscxr.adaptation.adapt import adapt as adapt
from monai_wscxr.adaptation.adapt import extractor_for as extractor_for
