"""The executor behind HTTP: the worker, the gateway's client of it, and what goes over the wire."""
