"""Every topic as a Delta Lake table in S3, and the questions that analysts ask of them. Runs without torch."""
