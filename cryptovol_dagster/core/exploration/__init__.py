"""Numbers and pictures for the notebook; nothing that trains or decides reads them."""
