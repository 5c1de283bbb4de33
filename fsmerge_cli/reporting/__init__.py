"""What a person sees: terminal, tables, page, card, plots."""
