"""The service `people`: forgets those who ask, and keeps the segments where the people are."""
