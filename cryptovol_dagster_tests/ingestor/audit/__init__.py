"""Conservation: what the audit finds, and what it must not take for a fault."""
