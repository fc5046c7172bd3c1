"""Data that ships with the project: scenarios, profiles and channel traces."""
