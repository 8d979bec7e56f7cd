from monai_wscxr.planning.plan import Plan as Plan
from monai_wscxr.planning.plan import make_plan as make_plan
from monai_wscxr.planning.precision import check_precision as check_precision
