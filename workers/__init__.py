"""The streaming side of ICG Worker: events in, covers out, behaviour back into the preference model."""
