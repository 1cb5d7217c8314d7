"""Who belongs, who decides, and what names mean: the fold over the replicated logs."""
