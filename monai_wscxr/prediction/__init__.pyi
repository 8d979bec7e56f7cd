from monai_wscxr.prediction.interactive import Model as Model
from monai_wscxr.prediction.interactive import Result as Result
from monai_wscxr.prediction.interactive import load as load
from monai_wscxr.prediction.interactive import train as train
from monai_wscxr.prediction.options import Options as Options
from monai_wscxr.prediction.run import predict as predict
