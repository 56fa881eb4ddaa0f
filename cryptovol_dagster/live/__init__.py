"""Live features: from Kafka in real time, by the functions that the hourly assets use."""
