"""Who is champion: the rule, its error budget and the record of a decision."""
