"""Where the studies to be labelled lie: a folder of files or a DICOMweb archive."""
