"""The studies to label, in a folder or on a DICOMweb server, with their labels and results."""
