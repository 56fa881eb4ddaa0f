"""Live features: from Kafka as the market goes, by the functions that the hourly assets use."""
