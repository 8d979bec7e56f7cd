"""MONAI Label around the workbench: tasks, datastore, and the guard in front of both."""
