"""The connection: session, liveness, backoff; frames become messages for the publisher."""
