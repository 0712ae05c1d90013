"""Tables 1-4 and Figures 4-8 of the paper."""
