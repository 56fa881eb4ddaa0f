"""How well scores rank, and how sure that is: functions of arrays, without any model or market."""
