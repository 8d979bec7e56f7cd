from monai_wscxr.prediction.options import Options as Options
from monai_wscxr.prediction.run import predict as predict
