from monai_wscxr.data.radiograph.base import Radiograph as Radiograph
from monai_wscxr.data.radiograph.base import RadiographError as RadiographError
from monai_wscxr.data.radiograph.read import read_radiograph as read_radiograph
