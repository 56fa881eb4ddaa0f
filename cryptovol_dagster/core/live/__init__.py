"""Pure parts of the live path: rows that are complete, reasons."""
