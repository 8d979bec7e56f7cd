from monai_wscxr.evaluation.epochs import epoch_network as epoch_network
from monai_wscxr.evaluation.handlers import EvaluationHandler as EvaluationHandler
from monai_wscxr.evaluation.handlers import InferenceHandler as InferenceHandler
from monai_wscxr.evaluation.items import evaluation_items as evaluation_items
from monai_wscxr.evaluation.items import inference_items as inference_items
from monai_wscxr.evaluation.localisation import localisation_metrics as localisation_metrics
from monai_wscxr.evaluation.metrics import honest_metrics as honest_metrics
from monai_wscxr.evaluation.metrics import paper_metrics as paper_metrics
