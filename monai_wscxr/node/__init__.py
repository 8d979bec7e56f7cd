"""The DICOM node and the HTTP service: radiographs come in over the network, results go back, without a person."""
