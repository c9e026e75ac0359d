"""Where embeddings and refine states are kept, behind one interface (`embeddings`)."""
