"""DICOM, in and out: headers, frames, DICOMweb. Imports no room that knows slides."""
