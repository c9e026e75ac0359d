"""The WSI-SAM service: gateway, executor and worker."""
