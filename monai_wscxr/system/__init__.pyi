from monai_wscxr.system.processes import data_parallel as data_parallel
from monai_wscxr.system.processes import join_processes as join_processes
from monai_wscxr.system.processes import leave as leave
