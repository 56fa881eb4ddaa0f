"""What assets hold on to: the lake, raw storage, tracking, reports; and settings turned into specs."""
