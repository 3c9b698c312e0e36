"""Attackers: interventions that can be trained with, or put on any saved policy."""
