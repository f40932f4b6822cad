"""The embedded stack: a real Kafka broker, a real PostgreSQL server, a simulated bank and a simulated mapper."""
