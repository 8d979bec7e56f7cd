"""The records of a prediction run as the report of `report/`."""
from pathlib import Path
def write_run_report(folder, model, records, scale):
    pass
