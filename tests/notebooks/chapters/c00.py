"""Chapter 00: what it defines. It rebuilds nothing."""

OWN = {"ask", "first_try", "look", "loss"}
INPUTS = {}
