"""The makings of FoX: formations, their counts, the network that predicts them, the bonus for awareness of them."""
