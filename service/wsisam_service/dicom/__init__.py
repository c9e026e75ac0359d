"""DICOM, in and out: headers, frames, DICOMweb. Imports no other room but `errors`, `settings` and `masks`."""
