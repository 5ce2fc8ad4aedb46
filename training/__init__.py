"""Training without torch: the gradient of the NCA step, a tape, losses, and a fit that notices when it fails."""
