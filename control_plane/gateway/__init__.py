"""The MQTT process: inbox (batch, exactly once) and relay (outbox to broker)."""
