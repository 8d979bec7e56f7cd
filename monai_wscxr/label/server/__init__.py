"""The workbench as a MONAI Label server: datastore, tasks, and the guard in front of both."""
