"""Conservation made visible: every sequence number that the exchange sent is stored, accounted for, or named.

Belongs here: what raw storage alone can show, pure and in hours. Does not belong here: a clock, a
broker, or repairing anything.
"""
