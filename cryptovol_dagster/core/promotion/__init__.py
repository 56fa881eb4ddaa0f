"""Choice of the champion: the rule, its error budget and the stored decision."""
