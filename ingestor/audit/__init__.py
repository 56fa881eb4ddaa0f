"""Audit of conservation: every sequence number of the exchange is stored, accounted for, or reported as lost.

Belongs here: checks of raw storage alone, pure and by hour. Does not belong here: a clock, a
broker, or repairing anything.
"""
