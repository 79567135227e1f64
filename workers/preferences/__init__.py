"""The learner: `user-behavior` in, tastes and preference revisions out."""
