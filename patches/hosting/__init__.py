"""hivemind's and Petals' server parts."""
