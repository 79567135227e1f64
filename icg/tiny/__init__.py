"""Build icg-tiny, the small stack that really draws, from zero on the emoji pictures (train split only)."""
