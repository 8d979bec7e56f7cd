from monai_wscxr.adaptation.site import Adaptation as Adaptation
from monai_wscxr.adaptation.site import adapt as adapt
from monai_wscxr.adaptation.site import extractor_for as extractor_for
