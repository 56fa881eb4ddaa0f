"""Kafka: connection to a broker (real or embedded), its topics, the identity of their logs, publishing."""
