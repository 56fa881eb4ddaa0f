"""Who is champion: the rule, its error budget and the stored decision."""
