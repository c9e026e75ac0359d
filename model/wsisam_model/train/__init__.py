"""Training of adapters on a frozen backbone, from samples that somebody else cuts. Knows torch, no slides."""
