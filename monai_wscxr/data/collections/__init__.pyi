from monai_wscxr.data.collections.common import Limits as Limits
from monai_wscxr.data.collections.common import Record as Record
from monai_wscxr.data.collections.common import assemble as assemble
from monai_wscxr.data.collections.common import write_datalist as write_datalist
from monai_wscxr.data.collections.make import READERS as READERS
from monai_wscxr.data.collections.make import make_datalist as make_datalist
